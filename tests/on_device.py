"""The tests with their tensors on another device: ASAG_TEST_DEVICE=cuda. `python -m asag bench device` sets it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._device import DeviceContext, _device_constructors
from torch.utils._pytree import tree_map_only

VARIABLE = "ASAG_TEST_DEVICE"


class OnDevice(DeviceContext):
    """As torch.set_default_device, while entered; besides, generators of the CPU fill tensors of the device, and numpy
    reads them. So tests written for a CPU have the same numbers there."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.numpy:
            return args[0].cpu().numpy(*args[1:], **kwargs)
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
