"""In which precision something is computed: half precision is raised, and nothing is lowered."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; float32 and float64 as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Hosts sample under autocast, which would put the potentials' products into half precision."""
    return torch.autocast(device_type, enabled=False) if has_autocast(device_type) else nullcontext()


def has_autocast(device_type: str) -> bool:
    """Whether there is an autocast to be switched off: MPS got one in torch 2.5, and DirectML has none."""
    ask = getattr(torch.amp, "is_autocast_available", None)
    return device_type in ("cpu", "cuda", "xpu") or (device_type == "mps" and ask is not None and ask("mps"))
