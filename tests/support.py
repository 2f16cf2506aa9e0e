"""What several tests need: an operator that changes nothing, a model's state besides its weights, a GPU that failed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asag.kernel_choice import KERNELS
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


def broken_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The double of a GPU that fails at every call, after ASAG's Triton kernels ran on it."""

    def synchronize(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    for name, value in {
        "off": False,
        "reason": "",
        "compared": {(torch.device("cuda", 0), torch.float16, 64, 64, ())},
    }.items():
        monkeypatch.setattr(KERNELS, name, value)
