"""The operator by Triton kernels: Sinkhorn's iteration, plain attention and joint attention, without a wait.

`kernels` is asag.kernel_launch, or a double of it.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor


def potentials(
    kernels: ModuleType, query: Tensor, key: Tensor, scale: float, iterations: int, tolerance: float | None
) -> tuple[Tensor, Tensor]:
    """Row and column potentials, (batch * heads, n) and (batch * heads, m), float32, in 2 launches an iteration.

    With a `tolerance`, a head keeps its potentials once the mean of ``|g - g_previous|`` over its keys fell below it.
    Which heads go on is a flag on the device: the kernels return at once for the others.
    """
    rows: Tensor | None = None
    columns: Tensor | None = None
    moving: Tensor | None = None
    for iteration in range(iterations):
        before = columns
        rows = kernels.half_sweep(query, key, columns, scale, rows, moving)
        kept = before.clone() if moving is not None and before is not None else None
        columns = kernels.half_sweep(key, query, rows, scale, kept, moving)
        if tolerance is not None and iteration < iterations - 1:
            step = columns if before is None else columns - before
            # A head that has stopped takes a step of 0, and stays.
            moving = step.abs().mean(dim=-1) >= tolerance
    assert rows is not None
    assert columns is not None
    return rows, columns


def plain(
    kernels: ModuleType,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    iterations: int,
    tolerance: float | None,
    normalize: str,
) -> Tensor:
    """(batch, heads, n, e) in the query's dtype. "columns" takes one more half-sweep: it rescales row i by
    ``n exp(f_i + LSE_j(L_ij + g_j))``."""
    rows, columns = potentials(kernels, query, key, scale, iterations, tolerance)
    out: Tensor = kernels.biased_attention(query, key, value, columns, scale)
    if normalize == "columns":
        factor = torch.exp(rows - kernels.half_sweep(query, key, columns, scale))
        out = (out * factor.unflatten(0, query.shape[:2])[..., None]).to(query.dtype)
    return out


def joint(
    kernels: ModuleType,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    image: slice,
    text_bias: Tensor | None,
    scale: float,
    iterations: int,
    tolerance: float | None,
    out: Tensor,
) -> None:
    """Fill the rows of `out` (batch, heads, tokens, e) that belong to image queries; rows are normalised.

    The tensors are of all tokens; `text_bias` (batch, heads, image queries, text keys) is added to the logits of the
    text keys.
    """
    image_query = query[:, :, image]
    columns = potentials(kernels, image_query, key[:, :, image], scale, iterations, tolerance)[1]
    kernels.joint_attention(image_query, key, value, columns, scale, image.start, text_bias, out[:, :, image])
