"""Sinkhorn by the log-sum-exps of torch's attention kernels: by that for CPUs, against float64; and which is used.

What CUDA's kernels return nobody here has seen: that is why the first result of each is compared (`trusts`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from asag import attention_kernels
from asag.attention import adversarial_sinkhorn_attention
from asag.attention_kernels import AttentionKernels, Carried, attention_by, sdpa_params
from asag.device_scores import attention_by_tiles
from asag.kernel_choice import DeviceLost
from asag.lab.bench.fake_cuda import FakeCuda
from tests.support import needs_fake_cuda
from tests.test_device_scores import BOUNDS, heads_of, relative_error

CPU_FLASH = "_scaled_dot_product_flash_attention_for_cpu"
Sums = Callable[[str, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def flash_of_the_cpu(kernel: str, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """torch's own flash attention, that for CPUs, in place of CUDA's."""
    out, sums = getattr(torch.ops.aten, CPU_FLASH)(query, key, value, 0.0, False, scale=scale)
    return out, sums


def written_out(kernel: str, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """What the memory-efficient kernel computes: its values may have another width."""
    scores = scale * query.float() @ key.float().mT
    return (torch.softmax(scores, dim=-1) @ value.float()).to(query.dtype), torch.logsumexp(scores, dim=-1)


@cache
def is_exact(dtype: torch.dtype) -> bool:
    """Whether the CPU's flash attention keeps scores in float32: torch 2.3 keeps those of float16 in float16."""
    query, key, value = heads_of(9, 9, 8, dtype, 300.0)
    found, expected = (sums("flash", query, key, value, 0.35)[1] for sums in (flash_of_the_cpu, written_out))
    return relative_error(found, expected.double()) < 1e-5


@pytest.fixture(params=["flash", "efficient"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "flash" and not hasattr(torch.ops.aten, CPU_FLASH):
        pytest.skip("this torch has no flash attention for CPUs")
    stand_in: Sums = flash_of_the_cpu if request.param == "flash" else written_out
    monkeypatch.setattr(attention_kernels, "with_sums", stand_in)
    name: str = request.param
    return name


@pytest.mark.parametrize("cost", ["adversarial", "similarity"])
@pytest.mark.parametrize("normalize", ["rows", "columns"])
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("largest", [1.0, 30.0, 300.0, 1e4])
@pytest.mark.parametrize(("n", "m", "width"), [(40, 40, 64), (17, 33, 40), (7, 5, 3)])
def test_it_is_the_dense_reference(
    kernel: str, n: int, m: int, width: int, largest: float, dtype: torch.dtype, normalize: str, cost: str
) -> None:
    if kernel == "flash" and not is_exact(dtype):
        pytest.skip("this torch's flash attention for CPUs rounds scores to half precision")
    query, key, value = heads_of(n, m, width, dtype, largest)
    given = (tensor.double() for tensor in (query, key, value))
    expected = adversarial_sinkhorn_attention(*given, normalize=normalize, cost=cost, impl="dense")
    scale = (-1 if cost == "adversarial" else 1) / math.sqrt(width)
    # float32 holds a logit of 300 to 2e-5; bfloat16's and float16's parts hold as much.
    bound = max(BOUNDS[dtype], 10 * largest * 2**-24)
    assert relative_error(attention_by(kernel, query, key, value, scale, 2, normalize), expected) < bound


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("normalize", ["rows", "columns"])
def test_any_number_of_sweeps(kernel: str, iterations: int, normalize: str) -> None:
    query, key, value = heads_of(30, 20, 16, torch.float32, 10.0)
    given = (tensor.double() for tensor in (query, key, value[..., :8]))
    expected = adversarial_sinkhorn_attention(*given, normalize=normalize, iterations=iterations, impl="dense")
    found = attention_by(kernel, query, key, value[..., :8], -0.25, iterations, normalize)
    assert found.shape == expected.shape
    assert relative_error(found, expected) < BOUNDS[torch.float32]


@pytest.mark.parametrize("scale", [1 / math.sqrt(40), 1e-3, 7.0])
@pytest.mark.parametrize(("dtype", "bits"), [(torch.float16, 21), (torch.bfloat16, 21), (torch.float32, 21)])
def test_features_hold_a_potential(dtype: torch.dtype, bits: int, scale: float) -> None:
    query, key = torch.zeros(1, 1, 50, 40, dtype=dtype), torch.zeros(1, 1, 30, 40, dtype=dtype)
    carried = Carried("flash", query, key, scale)
    sums = [torch.randn(1, 1, count, generator=torch.Generator().manual_seed(0)) * 100 + 7 for count in (50, 30)]
    carried.put_rows(sums[0])
    carried.put_columns(sums[1])
    queries, keys = carried.queries.double(), carried.keys.double()
    for found, wanted in (
        (scale * queries[..., 8:] @ keys[..., 8:].mT, -sums[1][:, :, None]),
        (scale * queries[..., :-8] @ keys[..., :-8].mT, -sums[0][..., None]),
    ):
        assert float((found - wanted).abs().max()) < 2.0**-bits * 400


@pytest.mark.parametrize("kernel", ["flash", "efficient"])
def test_torch_is_asked_for_whole_attention_and_its_sums(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    """By the names in torch's own schema: no dropout, nothing causal, no map for debugging."""
    name = f"_scaled_dot_product_{kernel}_attention"
    known = [each.name for each in getattr(torch.ops.aten, name).default._schema.arguments]
    asked: dict[str, object] = {}

    def recorded(*given: object, **named: object) -> tuple[Tensor, Tensor]:
        asked.update(zip(known, given, strict=False), **named)
        return torch.ones(1, 2, 5, 8), torch.arange(16.0).view(1, 2, 8)

    monkeypatch.setattr(torch.ops.aten, name, recorded)
    tensors = [torch.zeros(1, 2, 5, 8) for _ in range(3)]
    out, sums = attention_kernels.with_sums(kernel, tensors[0], tensors[1], tensors[2], 0.35)
    assert all(asked.pop(each) is tensor for each, tensor in zip(("query", "key", "value"), tensors, strict=True))
    of_flash, of_efficient = {"return_debug_mask": False}, {"attn_bias": None, "compute_log_sumexp": True}
    more = of_flash if kernel == "flash" else of_efficient
    assert asked == {"dropout_p": 0.0, "is_causal": False, "scale": 0.35} | more
    # Older versions of torch round the number of sums up.
    assert torch.equal(out, torch.ones(1, 2, 5, 8))
    assert torch.equal(sums, torch.arange(16.0).view(1, 2, 8)[..., :5])


def test_heads_are_widened_to_a_multiple_of_eight() -> None:
    assert [attention_kernels.padded(width) for width in (1, 3, 8, 9, 23, 40, 60)] == [8, 8, 8, 16, 24, 40, 64]


class Trial(AttentionKernels):
    """For tensors of a CPU, with every kernel there."""

    suits = staticmethod(lambda query, value, scale: True)
    can_use = staticmethod(lambda kernel, query, value: True)


def attend(kernels: AttentionKernels, width: int = 16) -> Tensor | None:
    return kernels.attention(*heads_of(12, 12, width, torch.float32, 5.0), -0.25, 2, "rows")


def replaced(monkeypatch: pytest.MonkeyPatch, **wrong: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> list[str]:
    """Stand-ins for both kernels, of which those named do something else with the output and the sums."""
    calls = []

    def with_sums(kernel: str, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        calls.append(kernel)
        out, sums = written_out(kernel, query, key, value, scale)
        return wrong[kernel](out, sums) if kernel in wrong else (out, sums)

    monkeypatch.setattr(attention_kernels, "with_sums", with_sums)
    return calls


def raising(out: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    raise RuntimeError("no kernel image")


def test_a_kernel_is_compared_once_for_each_kind_of_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, kernels = replaced(monkeypatch), Trial()
    for width, expected in ((16, 10), (16, 5), (24, 10), (16, 5)):
        calls.clear()
        assert attend(kernels, width) is not None
        assert calls == ["flash"] * expected


@pytest.mark.parametrize(
    "wrong",
    [
        raising,
        lambda out, sums: (out, sums * 1.4427),
        lambda out, sums: (out * 1.01, sums),
        lambda *_: (_[0], _[1] / 0),
        lambda out, sums: (out[..., :4], sums),
    ],
    ids=["raises", "base two", "output", "infinite", "can't be compared"],
)
def test_a_kernel_that_is_amiss_stays_off_and_the_log_says_so_once(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wrong: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> None:
    calls, kernels = replaced(monkeypatch, flash=wrong), Trial()
    query, key, value = heads_of(12, 12, 16, torch.float32, 5.0)
    expected = attention_by_tiles(query, key, value, -0.25, 2, None, "rows")
    for _ in range(2):
        found = kernels.attention(query, key, value, -0.25, 2, "rows")
        assert found is not None
        torch.testing.assert_close(found, expected)
    assert kernels.off == {"flash"}
    assert set(calls[-5:]) == {"efficient"}
    assert len(caplog.records) == 1
    assert "flash" in caplog.text


@pytest.mark.parametrize("size", [1e-4, 1e4])
def test_how_far_a_first_result_may_be_goes_by_its_size(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    query, key, value = heads_of(12, 12, 16, torch.float32, 5.0)
    for wrong, off in ((0.9e-3, set()), (1.1e-3, {"flash"})):
        replaced(monkeypatch, flash=lambda out, sums, wrong=wrong: (out * (1 + wrong), sums))  # type: ignore[misc]
        kernels = Trial()
        kernels.attention(query, key, size * value, -0.25, 2, "rows")
        assert kernels.off == off


def test_a_kernel_that_breaks_the_device_ends_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error shows where the host waits, and every call after it fails as well."""

    def wait(*compared: object) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with more")

    calls = replaced(monkeypatch)
    monkeypatch.setattr(attention_kernels, "is_lost", lambda device: True)
    monkeypatch.setattr(attention_kernels, "attention_by_tiles", wait)
    with pytest.raises(DeviceLost) as found:
        attend(Trial())
    assert str(found.value) == (
        "the GPU failed while ASAG tried torch's flash attention kernel (RuntimeError: CUDA error: an illegal memory "
        "access was encountered); restart with ASAG_IMPL=dense in the environment, which takes more memory"
    )
    assert set(calls) == {"flash"}


def test_without_a_kernel_nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, kernels = replaced(monkeypatch, flash=raising, efficient=raising), Trial()
    assert attend(kernels) is None
    assert attend(kernels) is None
    assert calls == ["flash", "efficient"]


def test_memory_that_runs_out_is_no_fault_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(out: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        raise torch.cuda.OutOfMemoryError("full")

    kernels = Trial()
    replaced(monkeypatch, flash=full)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        attend(kernels)
    assert kernels.off == set()


@pytest.mark.parametrize(
    ("change", "suits"),
    [
        ({}, True),
        ({"dtype": torch.float64}, False),
        ({"value_width": 72}, True),
        ({"value_width": 73}, False),
        ({"scale": 1e3}, True),
        ({"scale": -1e3}, True),
        ({"scale": 1e-5}, False),
        ({"scale": 1e4}, False),
        ({"hip": "6.2"}, False),
        ({"device": "cpu"}, False),
    ],
)
@needs_fake_cuda
def test_tensors_that_suit(monkeypatch: pytest.MonkeyPatch, change: dict[str, object], suits: bool) -> None:
    case = {"dtype": torch.float16, "value_width": 64, "scale": 0.125, "hip": None, "device": "cuda"} | change
    monkeypatch.setattr(torch.version, "hip", case["hip"])
    with FakeCuda():
        query = torch.empty(1, 2, 8, 64, dtype=case["dtype"], device=case["device"])
        value = torch.empty(1, 2, 8, case["value_width"], dtype=case["dtype"], device=case["device"])
        assert AttentionKernels.suits(query, value, case["scale"]) == suits


@pytest.mark.parametrize(
    ("dtype", "sm", "width", "found"),
    [
        (torch.float16, (8, 9), 64, ["flash", "efficient"]),
        (torch.bfloat16, (8, 0), 248, ["flash", "efficient"]),
        (torch.float16, (8, 9), 249, ["efficient"]),
        (torch.float32, (8, 9), 64, ["efficient"]),
        (torch.float16, (7, 5), 64, ["efficient"]),
        (torch.bfloat16, (7, 5), 64, []),
    ],
)
def test_torch_before_it_could_be_asked(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, sm: tuple[int, int], width: int, found: list[str]
) -> None:
    """torch 2.1.2, A1111's, has no can_use_flash_attention."""
    for name in ("flash", "efficient"):
        monkeypatch.delattr(torch.backends.cuda, f"can_use_{name}_attention", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: sm)
    query, value = torch.empty(1, 1, 4, width, dtype=dtype), torch.empty(1, 1, 4, 64, dtype=dtype)
    assert [name for name in ("flash", "efficient") if AttentionKernels.can_use(name, query, value)] == found
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        assert not AttentionKernels.can_use("flash", query, value) or sm < (8, 0)
    finally:
        torch.backends.cuda.enable_flash_sdp(True)


@pytest.mark.parametrize("answer", [True, False])
def test_torch_is_asked_about_tensors_of_the_width_that_it_gets(monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    seen = []

    def ask(given: Tensor) -> bool:
        seen.append((given.shape[3], given.dtype))
        return answer

    monkeypatch.setattr(attention_kernels, "sdpa_params", lambda like: like)
    monkeypatch.setattr(torch.backends.cuda, "can_use_flash_attention", ask, raising=False)
    query = torch.empty(1, 1, 4, 60, dtype=torch.float16)
    assert AttentionKernels.can_use("flash", query, query) == answer
    assert seen == [(72, torch.float16)]


def test_older_versions_of_torch_take_an_argument_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.backends.cuda,
        "SDPAParams",
        lambda query, key, value, mask, dropout, causal: (query.shape, mask, dropout, causal),
        raising=False,
    )
    assert sdpa_params(torch.empty(1, 1, 8, 16)) == ((1, 1, 8, 16), None, 0.0, False)
    monkeypatch.undo()
    if hasattr(torch.backends.cuda, "SDPAParams"):
        assert sdpa_params(torch.empty(1, 1, 8, 16)).dropout == 0.0
