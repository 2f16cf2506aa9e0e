"""What several tests need: an operator that changes nothing, a model's state besides its weights, and a mark."""

from __future__ import annotations

from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from asag.lab.bench.fake_cuda import WITHOUT_DEVICE
from asag.operators import Operator

needs_fake_cuda = pytest.mark.skipif(not WITHOUT_DEVICE, reason="this torch's fake tensors need a real device")


class Softmax(Operator):
    """The attention that the layers have anyway: put in, nothing may change."""

    def plain(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)

    def joint(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        image: slice,
        grid: tuple[int, int] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def snapshot(model: nn.Module) -> list[Any]:
    """What must be as before: every module's attributes, hooks and forward."""
    kept: list[Any] = []
    for name, module in model.named_modules():
        attributes = {key: value for key, value in module.__dict__.items() if not isinstance(value, dict)}
        tables = {
            key: list(value.items())
            for key, value in module.__dict__.items()
            if isinstance(value, dict) and key != "_parameters"
        }
        kept.append((name, attributes, tables, getattr(module.forward, "__func__", module.forward)))
    return kept
