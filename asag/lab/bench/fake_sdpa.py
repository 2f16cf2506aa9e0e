"""Which kernel scaled_dot_product_attention takes on CUDA, and what it does to its mask, for fake CUDA tensors.

torch's CPU wheel would choose its math fallback for them. Sources in PyTorch, of which nothing is copied:
aten/src/ATen/native/transformers/cuda/sdp_utils.cpp (the choice, here without cuDNN's kernel) and
aten/src/ATen/native/transformers/attention.cpp (the mask).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from asag.lab.bench.roofline import Record

aten = torch.ops.aten
KERNELS = ("flash", "efficient")
FLASH_WIDTHS = (32, 64, 96, 128, 160, 192, 224, 256)
# The memory-efficient kernel reads rows of the mask in pieces of so many elements.
MASK_ALIGNMENT = 16


def flash_width(head_dim: int) -> int:
    """The head dimension that torch's copy of FlashAttention 2 computes with."""
    return next(size for size in FLASH_WIDTHS if head_dim <= size)


def takes(kernel: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, sm: int) -> bool:
    """Whether an architecture's "flash" or "efficient" kernel takes such tensors."""
    halves = (torch.float16, torch.bfloat16) if sm >= 80 else (torch.float16,)
    half = query.dtype in halves
    if not all(tensor.stride(-1) == 1 for tensor in (query, key, value)):
        return False
    if kernel == "flash":
        same = query.shape[3] == key.shape[3] == value.shape[3]
        return mask is None and half and same and query.shape[3] <= FLASH_WIDTHS[-1] and sm >= 80
    alignment = (8 if half else 4) if sm >= 80 else (8 if half and sm >= 70 else 1)
    aligned = all(size % alignment == 0 for size in (query.shape[3], value.shape[3]))
    aligned = aligned and all(tensor.storage_offset() % alignment == 0 for tensor in (query, key, value))
    return aligned and (half or query.dtype in (torch.float16, torch.float32))


def chosen_kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, sm: int) -> str:
    """ "flash", "efficient" or "math", which builds the whole matrix of logits."""
    return next((name for name in KERNELS if takes(name, query, key, value, mask, sm)), "math")


def prepared_mask(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The mask as the memory-efficient kernel reads it: written out whole where its rows aren't aligned."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask.logical_not(), -math.inf)
    full = (*query.shape[:3], key.shape[2])
    aligned = mask.stride(-1) == 1 and all(stride % MASK_ALIGNMENT == 0 for stride in mask.stride()[:-1])
    if not aligned:
        padding = MASK_ALIGNMENT - mask.shape[-1] % MASK_ALIGNMENT
        mask = F.pad(mask.expand(full), (0, padding))[..., : mask.shape[-1]]
    return mask.expand(full)


class Sdpa(TorchFunctionMode):
    """While entered, SDPA of fake CUDA tensors runs the operation that CUDA would. `record`: where it is counted."""

    def __init__(self, sm: int, record: Callable[[], Record | None]) -> None:
        super().__init__()
        self.sm, self.record = sm, record

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        query = args[0] if args else kwargs.get("query")
        if func is not F.scaled_dot_product_attention or query is None or query.device.type != "cuda":
            return func(*args, **kwargs)
        return self._attention(*args, **kwargs)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:
            raise NotImplementedError("enable_gqa: True; allowed: as many heads of keys as of queries")
        kernel, width = chosen_kernel(query, key, value, attn_mask, self.sm), query.shape[3]
        record = self.record()
        if record is not None:
            masked = " mask" if attn_mask is not None else ""
            record.sdpa[f"{kernel} {str(query.dtype).removeprefix('torch.')} d={width}{masked}"] += 1
        out: Tensor
        if kernel == "flash":
            query, key, value = (F.pad(each, (0, -width % 8)) if width % 8 else each for each in (query, key, value))
            factor = 1 / math.sqrt(width) if scale is None else scale
            flash = aten._scaled_dot_product_flash_attention
            out = flash(query, key, value, 0.0, is_causal, False, scale=factor)[0][..., :width]
        elif kernel == "efficient":
            mask = attn_mask if attn_mask is None else prepared_mask(attn_mask, query, key)
            efficient = aten._scaled_dot_product_efficient_attention
            out = efficient(query, key, value, mask, False, 0.0, is_causal, scale=scale)[0]
        else:
            out = aten._scaled_dot_product_attention_math(query, key, value, attn_mask, 0.0, is_causal, scale=scale)[0]
        return out
