"""Doubles of asag.kernel_launch for fake tensors: results of the same shape and layout, a launch each in the record."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from asag.lab.bench.roofline import Op, Record

SITE = "asag/kernel_launch.py"


class FakeKernels:
    """Has the functions of asag.kernel_launch. `record`: where launches are counted."""

    def __init__(self, record: Callable[[], Record | None]) -> None:
        self.record = record

    def half_sweep(
        self,
        query: Tensor,
        key: Tensor,
        bias: Tensor | None,
        scale: float,
        out: Tensor | None = None,
        moving: Tensor | None = None,
    ) -> Tensor:
        batch, heads, n, width = query.shape
        self.launch("half_sweep", query, [query, key], key.shape[2], width)
        return torch.empty(batch * heads, n, device=query.device, dtype=torch.float32) if out is None else out

    def biased_attention(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
        batch, heads, n, width = query.shape
        self.launch("biased_attention", query, [query, key, value, query], key.shape[2], width + value.shape[3])
        shape = (batch, n, heads, value.shape[3])
        return torch.empty(shape, device=query.device, dtype=query.dtype).transpose(1, 2)

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
        width, images = query.shape[3] + value.shape[3], bias.shape[1]
        # Of a score among image tokens there are two exponentials.
        self.launch("joint_attention", query, [query, key, value, out], key.shape[2], width, images)

    def launch(self, name: str, query: Tensor, moved: list[Tensor], keys: int, widths: int, again: int = 0) -> None:
        for tensor in moved:
            torch.ops.aten.alias(tensor)  # the record sees what is in use by torch's own operations alone
        rows = math.prod(query.shape[:3])
        pairs, exps = rows * keys, rows * (keys + again)
        size = sum(each.numel() * each.element_size() for each in moved)
        record = self.record()
        if record is not None:
            record.ops.append(Op(name, SITE, 1, 2.0 * pairs * widths, exps, size, query.dtype, tuple(query.shape)))
