"""The tests with their tensors on another device: ASAG_TEST_DEVICE=cuda. `python -m asag bench device` sets it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils._device import DeviceContext, _device_constructors
from torch.utils._pytree import tree_map_only

from asag.lab.bench.device.watch import exact_float32

VARIABLE = "ASAG_TEST_DEVICE"
# Their functions stand between who calls and this.
BETWEEN = ("torch", "numpy", __name__)


class OnDevice(DeviceContext):
    """As torch.set_default_device, while entered; besides, generators of the CPU fill tensors of the device, and numpy
    reads them. So tests written for a CPU have the same numbers there, in float32 rather than TF32: a tiny model with
    random weights makes a tenth of TF32's rounding. ASAG itself gets none of this, so what it makes on the wrong device
    is found."""

    exact: AbstractContextManager[None]

    def __enter__(self) -> Any:
        self.exact = exact_float32()
        self.exact.__enter__()
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self.exact.__exit__(*raised)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        helped = func in _device_constructors() or func in (Tensor.numpy, Tensor.__array__, torch.from_numpy)
        if helped and is_asag(caller()):
            return func(*args, **kwargs)
        if func in (Tensor.numpy, Tensor.__array__):
            return func(args[0].cpu(), *args[1:], **kwargs)
        if func is torch.from_numpy:
            return torch.from_numpy(*args).to(self.device)
        generator = kwargs.get("generator")
        if generator is None or generator.device.type != "cpu":
            return super().__torch_function__(func, types, args, kwargs)
        if func in _device_constructors():
            device = kwargs.get("device") or self.device
            return func(*args, **(kwargs | {"device": "cpu"})).to(device)
        if func.__name__.endswith("_"):  # fills its first argument
            filled = func(torch.empty_like(args[0], device="cpu"), *args[1:], **kwargs)
            return args[0].copy_(filled)
        moved = tree_map_only(Tensor, Tensor.cpu, (args, kwargs))
        return func(*moved[0], **moved[1]).to(self.device)


def caller() -> str:
    """The module that calls torch."""
    frame = sys._getframe(1)
    name = __name__
    while frame.f_back is not None and name.startswith(BETWEEN):
        frame = frame.f_back
        name = frame.f_globals.get("__name__", "")
    return name


def is_asag(module: str) -> bool:
    """Whether a module is one of ASAG itself, not of its laboratory."""
    return module.startswith("asag.") and not module.startswith("asag.lab.")
