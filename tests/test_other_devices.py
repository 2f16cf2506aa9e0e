"""MPS, XPU and DirectML: which operations they are asked for, on made-up tensors of a device of that type.

This is a check of operations, not a run: nobody here has such a device. torch-directml is a "privateuseone" device,
which the dispatcher of a CPU build doesn't know; its operations are those of the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from asag.attention import adversarial_sinkhorn_attention
from asag.lab.bench.fake_costs import NO_KERNEL
from asag.lab.bench.fake_cuda import META, guard_table
from asag.operators import METHODS, make_operator

DEVICES = {"mps": 13, "xpu": 12}  # c10::DeviceType
# Plain arithmetic, reductions, products and copies: nothing that only CUDA and CPUs have, such as logaddexp or baddbmm
# with an output of its own, and nothing that is read back. Since torch 2.15 new_zeros is new_empty and fill_.
PLAIN = {
    "_log_softmax", "_softmax", "_to_copy", "abs", "add", "bitwise_and", "bmm", "cat", "clone", "constant_pad_nd",
    "copy_", "div", "exp", "fill_", "ge", "mean", "mul", "mul_", "new_ones", "new_zeros", "ones_like", "reciprocal",
    "sub", "sub_", "sum", "where",
}  # fmt: skip
MOST_ELEMENTS = 2**31  # MPS counts elements in 32 bits


class Refusing(TorchDispatchMode):
    """Raises AssertionError for an operation, a dtype or a size that these devices lack, and notes what was asked."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.asked = device, set[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.split("::")[1]
        if self.there((args, kwargs)) and func.namespace == "aten":
            self.asked.add(name)
            assert name in PLAIN | NO_KERNEL, f"{self.device} is asked for {name}"
        out = func(*args, **(kwargs or {}))
        for tensor in self.there((args, kwargs, out)):
            assert tensor.dtype != torch.float64, f"{name} in float64 on {self.device}"
            assert tensor.numel() < MOST_ELEMENTS, f"{name}: too large for {self.device}"
        return out

    def there(self, given: object) -> list[Tensor]:
        tensors = [each for each in tree_flatten(given)[0] if isinstance(each, Tensor)]
        return [each for each in tensors if each.device.type == self.device]


def attention_of_the_device(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """A double of SDPA, which this build of torch hasn't for these devices, and every host uses itself."""
    return torch.softmax(query @ key.transpose(2, 3), dim=-1) @ value


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A type of device whose tensors are made up."""
    name: str = request.param
    backend = getattr(torch, name, None)
    if not hasattr(backend, "is_available"):
        pytest.skip(f"this torch can't say whether there is a real {name} here")
    if not hasattr(torch.amp, "is_autocast_available"):
        pytest.skip(f"this torch makes up no tensors of {name}")  # XPU came with Intel's extension alone
    if backend.is_available():
        pytest.skip(f"there is a real {name} here")
    table = guard_table()
    before = table[DEVICES[name]]
    table[DEVICES[name]] = table[META]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            yield name
    finally:
        table[DEVICES[name]] = before


def heads_of(device: str, tokens: int, dtype: torch.dtype = torch.float16, batch: int = 1) -> list[Tensor]:
    made = [torch.empty(batch, tokens, 4, 40, device=device, dtype=dtype) for _ in range(3)]
    return [tensor.transpose(1, 2) for tensor in made]


@pytest.mark.parametrize("normalize", ["rows", "columns"])
@pytest.mark.parametrize("tolerance", [None, 1e-3])
@pytest.mark.parametrize(("tokens", "batch"), [(64, 2), (4096, 1), (24576, 1)])
def test_the_operator_asks_for_plain_operations(
    device: str, tokens: int, batch: int, tolerance: float | None, normalize: str
) -> None:
    """24576² is above 2³¹ in four heads and doesn't fit one tile."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        given = heads_of(device, tokens, dtype, batch)
        with Refusing(device) as refusing:
            out = adversarial_sinkhorn_attention(*given, normalize=normalize, tolerance=tolerance)
        assert (out.shape, out.dtype, out.device.type) == (given[0].shape, dtype, device)
        assert {"bmm", "_log_softmax"} <= refusing.asked


@pytest.mark.parametrize("text", [0, 24])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_asks_for_plain_operations(
    monkeypatch: pytest.MonkeyPatch, device: str, method: str, text: int
) -> None:
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention_of_the_device)
    given = heads_of(device, 256 + text)
    operator = make_operator(method, sigma=2.0)
    with Refusing(device):
        if text:
            operator.joint(*given, slice(0, 256), (16, 16))
        else:
            operator.plain(*given, (16, 16))


@pytest.mark.parametrize("wrong", ["float64", "item", "logaddexp", "large"])
def test_what_they_lack_is_refused(device: str, wrong: str) -> None:
    query = torch.empty(8, 8, device=device)
    asking = {
        "float64": lambda: query.double(),
        "item": lambda: query.sum().item(),
        "logaddexp": lambda: torch.logaddexp(query, query),
        "large": lambda: torch.zeros(2**16, 2**15, device=device),
    }
    with Refusing(device), pytest.raises(AssertionError, match=device):
        asking[wrong]()
