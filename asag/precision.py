"""In which precision something is computed: half precision is raised, and nothing is lowered."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; float32 and float64 as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Hosts sample under autocast, which would put the potentials' products into half precision."""
    return torch.autocast(device_type, enabled=False) if has_autocast(device_type) else nullcontext()


def float32_setting(backend: Any) -> tuple[str, Any]:
    """The name of torch's setting for products of float32 in a backend, such as torch.backends.cuda.matmul, and the
    value by which they keep all bits. Since torch 2.9 the older name mustn't be mixed with the newer one."""
    try:
        newer = hasattr(backend, "fp32_precision")
    except AssertionError:  # what torch 2.1 raises for a name that it lacks
        newer = False
    return ("fp32_precision", "ieee") if newer else ("allow_tf32", False)


def has_autocast(device_type: str) -> bool:
    """Whether there is an autocast to be switched off: MPS got one in torch 2.5, and DirectML has none."""
    ask = getattr(torch.amp, "is_autocast_available", None)
    return device_type in ("cpu", "cuda", "xpu") or (device_type == "mps" and ask is not None and ask("mps"))
