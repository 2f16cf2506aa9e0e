"""When the Triton kernels are used, and what happens when they fail; the kernels are doubles here."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from asag import attention, operators
from asag.hosts.reuse import Reuse
from asag.kernel_choice import DeviceLost, KernelChoice, is_lost, named_implementation
from asag.operators import Sinkhorn
from asag.random_state import RandomState


class Kernels:
    """A double of asag.kernel_launch whose attention is torch's, off by `wrong`, or fails with `error`."""

    def __init__(self, wrong: float = 0.0, error: Exception | None = None) -> None:
        self.wrong, self.error, self.calls = wrong, error, 0

    def half_sweep(
        self,
        query: Tensor,
        key: Tensor,
        bias: Tensor | None,
        scale: float,
        out: Tensor | None = None,
        moving: Tensor | None = None,
    ) -> Tensor:
        return query.new_zeros(query.shape[0] * query.shape[1], query.shape[2])

    def biased_attention(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
        self.called()
        return attention._by_torch(query, key, value, scale, 2, None, "rows") * (1 + self.wrong)

    def joint_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor,
        scale: float,
        before: int,
        text_bias: Tensor | None,
        out: Tensor,
    ) -> None:
        self.called()
        image = slice(before, before + query.shape[2])
        whole = torch.zeros_like(key)
        whole[:, :, image] = query
        expected = Sinkhorn(impl="streaming").joint(whole, key, value, image)
        out.copy_(expected[:, :, image] * (1 + self.wrong))

    def called(self) -> None:
        self.calls += 1
        if self.error:
            raise self.error


@pytest.fixture
def tensors() -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (torch.randn(1, 2, 9, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    return query, key, value


def chosen(monkeypatch: pytest.MonkeyPatch, kernels: Kernels) -> KernelChoice:
    choice: Any = KernelChoice()
    choice.module, choice.off = kernels, False
    monkeypatch.setattr(choice, "suits", lambda query, key, value: not choice.off)
    for module in (attention, operators):
        monkeypatch.setattr(module, "KERNELS", choice)
    found: KernelChoice = choice
    return found


def run(tensors: tuple[Tensor, Tensor, Tensor], impl: str = "auto", kind: str = "plain") -> Tensor:
    if kind == "joint":
        return Sinkhorn(impl=impl).joint(*tensors, slice(2, 7))
    return attention._on_device(*tensors, -0.25, 2, None, "rows", impl)


@pytest.mark.parametrize("kind", ["plain", "joint"])
def test_a_first_result_that_agrees_is_the_last_that_is_compared(
    monkeypatch: pytest.MonkeyPatch, tensors: tuple[Tensor, Tensor, Tensor], kind: str
) -> None:
    kernels = Kernels()
    choice = chosen(monkeypatch, kernels)
    expected = run(tensors, "streaming", kind)
    assert kernels.calls == 0
    torch.testing.assert_close(run(tensors, kind=kind), expected)
    kernels.wrong = 0.5  # no longer looked at
    found, image = run(tensors, kind=kind), slice(2, 7)
    torch.testing.assert_close(found[:, :, image], expected[:, :, image] * 1.5)
    assert not choice.off
    assert choice.in_use() == "triton"


def test_each_kind_has_a_first_result(monkeypatch: pytest.MonkeyPatch, tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    choice = chosen(monkeypatch, Kernels())
    mask = torch.zeros(1, 1, 1, 9)
    for tolerance in (None, 1e-6):
        attention._on_device(*tensors, -0.25, 2, tolerance, "rows", "auto")
        for each in (None, mask):
            Sinkhorn(tolerance=tolerance).joint(*tensors, slice(2, 7), mask=each)
    assert len(choice.compared) == 6


@pytest.mark.parametrize("kind", ["plain", "joint"])
@pytest.mark.parametrize(
    ("wrong", "error", "reason"),
    [
        (0.01, None, "their first result differs by 0.0"),
        (float("nan"), None, "their first result differs by nan"),
        (0.0, RuntimeError("no compiler"), "RuntimeError: no compiler"),
    ],
)
def test_what_is_amiss_switches_the_kernels_off_once(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tensors: tuple[Tensor, Tensor, Tensor],
    wrong: float,
    error: Exception | None,
    reason: str,
    kind: str,
) -> None:
    kernels = Kernels(wrong, error)
    choice = chosen(monkeypatch, kernels)
    expected = run(tensors, "streaming", kind)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            torch.testing.assert_close(run(tensors, kind=kind), expected)
    assert choice.off
    assert kernels.calls == 1
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"ASAG doesn't use its Triton kernels: {reason}")
    assert choice.in_use().startswith(f"streaming: {reason}")


def test_memory_that_ran_out_is_no_fault_of_the_kernels(
    monkeypatch: pytest.MonkeyPatch, tensors: tuple[Tensor, Tensor, Tensor]
) -> None:
    choice = chosen(monkeypatch, Kernels(error=torch.cuda.OutOfMemoryError("full")))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        run(tensors)
    assert not choice.off


class Context:
    """A double of a CUDA context: a broken kernel's error comes when the host waits, and then again and again."""

    def __init__(self) -> None:
        self.broken = False
        self.waits = 0

    def synchronize(self, device: torch.device) -> None:
        self.waits += 1
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with more")


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> Context:
    found = Context()
    monkeypatch.setattr(torch.cuda, "synchronize", found.synchronize)
    return found


CUDA = torch.device("cuda", 0)


def kernels_of(choice: KernelChoice, by_kernels: Any, by_torch: Any = lambda: torch.ones(2)) -> Tensor:
    """Run with a double of query and value on CUDA; the results are on the CPU."""
    query: Any = SimpleNamespace(device=CUDA, dtype=torch.float32, shape=(1, 1, 2, 16))
    return choice.run(query, query, (), by_kernels, by_torch)


def test_a_first_run_is_waited_for_and_later_ones_are_not(context: Context) -> None:
    choice: Any = KernelChoice()
    choice.module = SimpleNamespace()
    for _ in range(3):
        kernels_of(choice, lambda kernels: torch.ones(2))
    assert context.waits == 1


def test_a_kernel_that_breaks_the_device_ends_with_the_way_out(context: Context) -> None:
    """Torch's way would fail as well."""
    choice: Any = KernelChoice()
    choice.module = SimpleNamespace()

    def illegal(kernels: Any) -> Tensor:
        context.broken = True
        return torch.ones(2)

    def by_torch() -> Tensor:
        raise AssertionError("nothing can run")

    with pytest.raises(DeviceLost) as found:
        kernels_of(choice, illegal, by_torch)
    assert str(found.value) == (
        "the GPU failed while ASAG's Triton kernels ran (RuntimeError: CUDA error: an illegal memory access was "
        "encountered); restart with ASAG_IMPL=streaming in the environment, which switches them off"
    )
    assert choice.in_use() == "streaming: RuntimeError: CUDA error: an illegal memory access was encountered"


def test_a_kernel_that_fails_and_leaves_the_device_working_is_replaced(context: Context) -> None:
    choice: Any = KernelChoice()
    choice.module = SimpleNamespace()
    assert torch.equal(kernels_of(choice, lambda kernels: 1 / 0), torch.ones(2))
    assert choice.off
    assert not is_lost(CUDA)
    assert not is_lost(torch.device("cpu"))


def test_a_first_result_that_cant_be_compared_is_replaced(context: Context, caplog: pytest.LogCaptureFixture) -> None:
    """Such as one of another shape."""
    choice: Any = KernelChoice()
    choice.module = SimpleNamespace()
    assert torch.equal(kernels_of(choice, lambda kernels: torch.ones(3)), torch.ones(2))
    assert choice.off
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("ASAG doesn't use its Triton kernels: RuntimeError: The size of tensor a (3)")
    assert choice.compared == set()


def test_memory_that_runs_out_in_the_comparison_is_no_fault_of_the_kernels(context: Context) -> None:
    class Full(Tensor):
        @classmethod
        def __torch_function__(cls, *called: Any, **more: Any) -> Any:
            raise torch.cuda.OutOfMemoryError("full")

    choice: Any = KernelChoice()
    choice.module = SimpleNamespace()
    with pytest.raises(torch.cuda.OutOfMemoryError):
        kernels_of(choice, lambda kernels: torch.ones(2), lambda: torch.ones(2).as_subclass(Full))
    assert not choice.off


ILLEGAL = RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with more")


def test_a_kernel_that_breaks_the_device_in_a_later_run_has_the_same_error_wherever_it_shows(context: Context) -> None:
    choice: Any = KernelChoice()
    choice.module = SimpleNamespace()
    for _ in range(2):
        kernels_of(choice, lambda kernels: torch.ones(2))
    assert context.waits == 1
    context.broken = True
    with pytest.raises(DeviceLost) as found, choice.loss_named():
        raise ILLEGAL  # out of the host's next call
    assert str(found.value) == (
        "the GPU failed while ASAG's Triton kernels ran (RuntimeError: CUDA error: an illegal memory access was "
        "encountered); restart with ASAG_IMPL=streaming in the environment, which switches them off"
    )
    assert found.value.__cause__ is ILLEGAL
    assert choice.in_use() == "streaming: RuntimeError: CUDA error: an illegal memory access was encountered"


@pytest.mark.parametrize(
    ("ran", "off", "broken", "error"),
    [
        (False, False, True, ILLEGAL),  # no kernel of ASAG's ran
        (True, True, True, ILLEGAL),  # none did since another kind of tensors went amiss
        (True, False, False, ValueError("the host's own")),
        (True, False, True, DeviceLost("what to do")),
    ],
)
def test_any_other_error_stays_as_it_is(context: Context, ran: bool, off: bool, broken: bool, error: Exception) -> None:
    choice: Any = KernelChoice()
    choice.module = SimpleNamespace()
    if ran:
        kernels_of(choice, lambda kernels: torch.ones(2))
    choice.off, context.broken = off, broken
    with pytest.raises(type(error)) as found, choice.loss_named():
        raise error
    assert found.value is error
    assert choice.off == off


def test_a_lost_device_is_no_reason_for_a_whole_extra_pass() -> None:
    """Its error would hide the one that says what to do."""

    def branched() -> tuple[Tensor, Tensor]:
        raise DeviceLost("what to do")

    def plain() -> Tensor:
        raise AssertionError("nothing can run")

    with pytest.raises(DeviceLost, match="what to do"):
        Reuse(True).call(plain, branched, RandomState(torch.device("cpu")), False)


def on_cuda(
    shape: tuple[int, int, int, int] = (1, 2, 64, 64), dtype: torch.dtype = torch.float16, token_stride: int = 64
) -> Any:
    """A double of a CUDA tensor."""
    return SimpleNamespace(
        device=SimpleNamespace(type="cuda"), dtype=dtype, shape=shape, stride=lambda axis: {2: token_stride}[axis]
    )


@pytest.mark.parametrize(
    ("tensor", "capability", "suits"),
    [
        (on_cuda(), (8, 0), True),
        (on_cuda(), (7, 5), False),
        (on_cuda((1, 2, 64, 16)), (9, 0), True),
        (on_cuda((1, 2, 64, 256)), (9, 0), True),
        (on_cuda((1, 2, 64, 15)), (9, 0), False),
        (on_cuda((1, 2, 64, 257)), (9, 0), False),
        (on_cuda(dtype=torch.float64), (9, 0), False),
        (on_cuda((5, 13107, 64, 64)), (9, 0), True),
        (on_cuda((2, 32768, 64, 64)), (9, 0), False),
        (on_cuda((1, 2, 2**16, 64), token_stride=2**15 - 1), (9, 0), True),
        (on_cuda((1, 2, 2**16, 64), token_stride=2**15), (9, 0), False),
        (torch.zeros(1, 2, 64, 64, device="cpu"), (9, 0), False),  # tests/on_device.py: the default may be CUDA
    ],
)
def test_which_tensors_and_cards_suit(
    monkeypatch: pytest.MonkeyPatch, tensor: Any, capability: tuple[int, int], suits: bool
) -> None:
    choice = KernelChoice()
    choice.off = False
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choice.suits(tensor, tensor, tensor) == suits


@pytest.mark.parametrize(
    ("place", "other"), [(2, on_cuda((1, 2, 64, 257))), (1, on_cuda((1, 2, 2**16, 64), token_stride=2**15))]
)
def test_each_of_the_tensors_has_to_suit(monkeypatch: pytest.MonkeyPatch, place: int, other: Any) -> None:
    choice = KernelChoice()
    choice.off = False
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    given = [on_cuda(), on_cuda(), on_cuda()]
    assert choice.suits(given[0], given[1], given[2])
    given[place] = other
    assert not choice.suits(given[0], given[1], given[2])


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_how_far_a_first_result_may_be_goes_by_its_size(context: Context, size: float) -> None:
    expected = size * torch.ones(4)
    choice: Any = KernelChoice()
    choice.module, choice.off = SimpleNamespace(), False
    near = expected * (1 + 0.9e-3)
    assert torch.equal(kernels_of(choice, lambda kernels: near, lambda: expected), near)
    assert not choice.off
    choice.compared.clear()
    assert torch.equal(kernels_of(choice, lambda kernels: expected * (1 + 1.1e-3), lambda: expected), expected)
    assert choice.off


def test_joint_attention_refuses_what_plain_attention_refuses(
    monkeypatch: pytest.MonkeyPatch, tensors: tuple[Tensor, Tensor, Tensor]
) -> None:
    chosen(monkeypatch, Kernels())
    query, key, value = tensors
    with pytest.raises(ValueError, match="iterations: 0; allowed: an integer of at least 1"):
        Sinkhorn(iterations=0).joint(*tensors, slice(2, 7))
    with pytest.raises(ValueError, match="key: head_dim 15; allowed: that of query, 16"):
        Sinkhorn().joint(query, key[..., :15], value, slice(2, 7))


@pytest.mark.parametrize("left", [Sinkhorn(cost="uniform"), Sinkhorn(strength=0), Sinkhorn(impl="dense")])
def test_what_needs_no_kernels_takes_none(
    monkeypatch: pytest.MonkeyPatch, tensors: tuple[Tensor, Tensor, Tensor], left: Sinkhorn
) -> None:
    kernels = Kernels()
    chosen(monkeypatch, kernels)
    left.joint(*tensors, slice(2, 7))
    assert kernels.calls == 0


def test_it_is_said_which_implementation_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = KernelChoice()
    choice.off = False
    assert choice.in_use().startswith("not known yet")
    monkeypatch.setenv("ASAG_IMPL", "triton")
    assert choice.in_use().startswith("not known yet")
    monkeypatch.setenv("ASAG_IMPL", "streaming")
    assert choice.in_use() == "streaming: ASAG_IMPL says so"


@pytest.mark.parametrize("there", [True, False])
def test_without_the_package_it_is_said_that_it_is_missing(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if there else None)
    choice = KernelChoice()
    assert choice.off != there
    missing = choice.in_use() == "streaming: the package triton isn't installed"
    assert missing != there
    assert choice.reason == ("" if there else "the package triton isn't installed")


def test_the_environment_names_what_auto_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert named_implementation("auto") == "auto"
    monkeypatch.setenv("ASAG_IMPL", "streaming")
    assert named_implementation("auto") == "streaming"
    assert named_implementation("dense") == "dense"
    monkeypatch.setenv("ASAG_IMPL", "fast")
    with pytest.raises(ValueError, match="ASAG_IMPL: 'fast'; allowed: auto, dense, streaming, triton"):
        named_implementation("auto")
