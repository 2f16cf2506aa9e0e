"""Sinkhorn's iteration by kernels, against the dense reference; the kernels are doubles that compute in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from asag.attention import adversarial_sinkhorn_attention
from asag.kernel_path import plain


class Exact:
    """The double of asag.kernel_launch, by its docstrings."""

    def __init__(self) -> None:
        self.sweeps: list[Tensor | None] = []

    def half_sweep(
        self,
        query: Tensor,
        key: Tensor,
        bias: Tensor | None,
        scale: float,
        out: Tensor | None = None,
        moving: Tensor | None = None,
    ) -> Tensor:
        self.sweeps.append(moving)
        logits = scale * query.flatten(0, 1) @ key.flatten(0, 1).mT
        found = -math.log(query.shape[2]) - torch.logsumexp(logits if bias is None else logits + bias[:, None], dim=-1)
        if moving is None:
            return found
        assert out is not None, "heads that stop keep what `out` has"
        out[moving] = found[moving]
        return out

    def biased_attention(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
        logits = scale * query @ key.mT + bias.unflatten(0, query.shape[:2])[:, :, None]
        return torch.softmax(logits, dim=-1) @ value


def tensors() -> tuple[Tensor, Tensor, Tensor]:
    """Of six heads, the first of which stop early and the last late."""
    generator = torch.Generator().manual_seed(5)
    query, key, value = (torch.randn(1, 6, tokens, 8, generator=generator).double() for tokens in (9, 11, 11))
    return query * torch.tensor([0.2, 0.6, 1.0, 2.0, 4.0, 8.0])[:, None, None], key, value


@pytest.mark.parametrize("normalize", ["rows", "columns"])
@pytest.mark.parametrize("iterations", [1, 2, 3, 6])
@pytest.mark.parametrize("tolerance", [None, 1.0, 0.3, 0.1, 1e-2])
def test_each_head_stops_where_the_reference_does(tolerance: float | None, iterations: int, normalize: str) -> None:
    kernels: Any = Exact()
    found = plain(kernels, *tensors(), -(8**-0.5), iterations, tolerance, normalize)
    expected = adversarial_sinkhorn_attention(
        *tensors(), iterations=iterations, tolerance=tolerance, normalize=normalize, impl="dense"
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert len(kernels.sweeps) == 2 * iterations + (normalize == "columns")


def test_heads_stop_one_after_another() -> None:
    """Otherwise the test above would say little."""
    kernels: Any = Exact()
    plain(kernels, *tensors(), -(8**-0.5), 6, 0.1, "rows")
    moving = [int(each.sum()) for each in kernels.sweeps if each is not None]
    assert moving[::2] == moving[1::2] == [4, 3, 2, 1, 1]
