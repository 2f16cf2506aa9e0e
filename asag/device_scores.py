"""Sinkhorn's iteration in few and large kernels, for an accelerator: nothing is read back to the host.

Reading one number, say a bound on the logits, makes the host wait for all that it has queued. So no decision here
depends on a number: maxima are subtracted as they come, and logits of any size take the same way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from asag.precision import float32_setting

# Large enough to keep a device busy, and no more memory than a model's own activations.
DEVICE_TILE_BYTES = 1 << 27
# Rows of products are read in pieces of so many elements.
ALIGNMENT = 4


# So many sweeps by scaling stay in float32's range: see WholeHeads.
MOST_SCALED_SWEEPS = 4


@contextmanager
def full_float32(device_type: str) -> Iterator[None]:
    """Products of float32 in float32: hosts switch on TF32, which keeps 10 bits (A1111: modules/devices.py)."""
    if device_type != "cuda":
        yield
        return
    matmul = torch.backends.cuda.matmul
    name, full = float32_setting(matmul)
    before = getattr(matmul, name)
    setattr(matmul, name, full)
    try:
        yield
    finally:
        setattr(matmul, name, before)


class DeviceScores:
    """Logits ``L = scale * query keyᵀ`` and both potentials: query (batch, heads, n, d), key (batch, heads, m, d).

    Batch and heads become one list of heads, as "heads" means below.

    The potentials ride along as features, so that one product is ``L_ij + f_i + g_j``:

        queries [scale q, f, 1, 0 0]    keys [k - mean, 1, g, 0 0]

    The keys' mean moves each row by a constant, which no plan sees. `rows` is f plus log n, `columns` is g; both are
    views of those features, (heads, n) and (heads, m), and a sweep writes them in place.
    """

    def __init__(self, query: Tensor, key: Tensor, scale: float, dtype: torch.dtype) -> None:
        batch, heads, n, width = query.shape
        m = key.shape[2]
        padded = width + 2 + -(width + 2) % ALIGNMENT
        queries = query.new_zeros(batch, heads, n, padded, dtype=dtype)
        keys = key.new_zeros(batch, heads, m, padded, dtype=dtype)
        queries[..., :width] = query
        queries[..., :width].mul_(scale)
        torch.sub(key, key.mean(dim=2, keepdim=True, dtype=dtype), out=keys[..., :width])
        self.queries, self.keys = queries.flatten(0, 1), keys.flatten(0, 1)
        self.queries[..., width + 1] = 1
        self.keys[..., width] = 1
        self.rows, self.columns = self.queries[..., width], self.keys[..., width + 1]
        self.constant = math.log(m / n)
        self.elements = max(DEVICE_TILE_BYTES // dtype.itemsize, max(n, m))

    def iterate(self, iterations: int, tolerance: float | None) -> None:
        """Up to `iterations` sweeps. With a `tolerance`, a head keeps its potentials once the mean of
        ``|g - g_previous|`` over its keys fell below it; the others go on."""
        moving = None if tolerance is None else torch.ones_like(self.columns[:, :1], dtype=torch.bool)
        for _ in range(iterations):
            if moving is None or tolerance is None:
                self.sweep()
                continue
            rows, columns = self.rows.clone(), self.columns.clone()
            self.sweep()
            step = (self.columns - columns).abs().mean(dim=-1, keepdim=True)
            self.rows.copy_(torch.where(moving, self.rows, rows))
            self.columns.copy_(torch.where(moving, self.columns, columns))
            moving = moving & (step >= tolerance)

    def sweep(self) -> None:
        """f from g, then g from f."""
        self._half_sweep(self.queries, self.keys, self.rows)
        self._half_sweep(self.keys, self.queries, self.columns)
        if self.constant:
            self.columns -= self.constant

    def _half_sweep(self, own: Tensor, other: Tensor, potential: Tensor) -> None:
        for heads, rows in self._tiles(own.shape[1], other.shape[1]):
            potential[heads, rows].sub_(log_sums(own[heads, rows], other[heads]))

    def _tiles(self, rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
        """Slices of heads and of rows, each tile at most `elements` scores."""
        heads = min(max(self.elements // (rows * columns), 1), self.queries.shape[0])
        step = min(max(self.elements // columns, 1), rows)
        for head in range(0, self.queries.shape[0], heads):
            for row in range(0, rows, step):
                yield slice(head, head + heads), slice(row, row + step)

    def product(self, value: Tensor, by_columns: bool) -> Tensor:
        """Plan times n, times value (heads, m, e): (heads, n, e) in the dtype of the computation. Rows sum to one, or
        `by_columns` the columns, as after Algorithm 1's last update."""
        out = value.new_empty(*self.rows.shape, value.shape[2], dtype=self.keys.dtype)
        for heads, rows in self._tiles(self.queries.shape[1], self.keys.shape[1]):
            out[heads, rows] = torch.bmm(self._plan(heads, rows, by_columns), value[heads].to(out.dtype))
        return out

    def _plan(self, heads: slice, rows: slice, by_columns: bool) -> Tensor:
        scores = torch.bmm(self.queries[heads, rows], self.keys[heads].transpose(1, 2))
        return torch.exp(scores) if by_columns else torch.softmax(scores, dim=-1)


def log_sums(own: Tensor, other: Tensor) -> Tensor:
    """Log-sum-exp of the rows of ``own otherᵀ``, (heads, rows): a score less its log-softmax, of any one column.

    That is one kernel over the tile where torch.logsumexp takes six.
    """
    scores = torch.bmm(own, other.transpose(1, 2))
    return scores[..., 0] - torch.log_softmax(scores, dim=-1)[..., 0]


class WholeHeads:
    """The same for heads whose n x m scores may be held: formed once, for as many heads as fit `tile_bytes` or for one.
    The first sweep is by SoftMax and the others by scaling: half of the memory traffic and of the kernels.

    SoftMax along the rows of ``L`` is the update of f, and along the columns of what it gives that of g: exact for
    logits of any size. It leaves a matrix K whose columns sum to 1, and Sinkhorn's scaling goes on from there:

        u = 1 / (K v)        v = 1 / (Kᵀ u)        from v = 1

    No sum vanishes. K_ij is P_ij / s_j, where rows of P sum to 1 and column j to s_j <= n: rows of K sum to at least
    1 / n and at most m, and no later sweep has sums beyond the least and the largest of the one before. So u and v stay
    within (n m)^(T - 1) for T sweeps. Logits that float32 can't tell from none beside those are lost as in any sum.
    """

    def __init__(self, query: Tensor, key: Tensor, scale: float, dtype: torch.dtype, tile_bytes: int) -> None:
        self.queries = query.new_empty(query.shape, dtype=dtype).copy_(query).flatten(0, 1)
        keys = key.new_empty(key.shape, dtype=dtype).copy_(key)
        keys -= keys.mean(dim=2, keepdim=True)  # it moves each row by a constant, which no plan sees
        keys *= scale
        self.keys = keys.flatten(0, 1)
        self.heads, self.n, self.m = *self.queries.shape[:2], self.keys.shape[1]
        self.step = max(tile_bytes // (self.n * self.m * dtype.itemsize), 1)

    @staticmethod
    def suits(
        query: Tensor, key: Tensor, dtype: torch.dtype, iterations: int, tolerance: float | None, head_bytes: int
    ) -> bool:
        """Whether a head's scores have at most `head_bytes`, and the sweeps stay in range. A tolerance needs the
        potentials themselves."""
        fits = query.shape[2] * key.shape[2] * dtype.itemsize <= head_bytes
        return fits and tolerance is None and iterations <= MOST_SCALED_SWEEPS

    def attention(self, value: Tensor, iterations: int, by_columns: bool) -> Tensor:
        """As DeviceScores.product after `iterations` sweeps, in value's dtype; value (heads, m, e)."""
        out = value.new_empty(self.heads, self.n, value.shape[2])
        for start in range(0, self.heads, self.step):
            group = slice(start, start + self.step)
            out[group] = self._group(group, value[group], iterations, by_columns)
        return out

    def _group(self, group: slice, value: Tensor, iterations: int, by_columns: bool) -> Tensor:
        scores = torch.log_softmax(torch.bmm(self.queries[group], self.keys[group].transpose(1, 2)), dim=2)
        kernel = torch.softmax(scores, dim=1)
        del scores
        rows, columns = kernel.new_ones(1, 1, 1), kernel.new_ones(kernel.shape[0], self.m, 1)
        for _ in range(1, iterations):
            rows = torch.bmm(kernel, columns).reciprocal()
            columns = torch.bmm(rows.transpose(1, 2), kernel).reciprocal().transpose(1, 2)
        if by_columns:
            return torch.bmm(kernel, value * columns) * (rows * (self.n / self.m))
        # A last column of the values gives the sums of rows.
        weighted = kernel.new_empty(*value.shape[:2], value.shape[2] + 1)
        weighted[..., :-1] = value * columns
        weighted[..., -1:] = columns
        out = torch.bmm(kernel, weighted)
        return out[..., :-1] / out[..., -1:]


def attention_by_tiles(
    query: Tensor, key: Tensor, value: Tensor, scale: float, iterations: int, tolerance: float | None, normalize: str
) -> Tensor:
    """The operator (asag.attention) on any device, in the query's dtype: by whole heads where one fits a tile."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    values, by_columns = value.flatten(0, 1), normalize == "columns"
    if WholeHeads.suits(query, key, dtype, iterations, tolerance, DEVICE_TILE_BYTES):
        out = WholeHeads(query, key, scale, dtype, DEVICE_TILE_BYTES).attention(values, iterations, by_columns)
    else:
        scores = DeviceScores(query, key, scale, dtype)
        scores.iterate(iterations, tolerance)
        out = scores.product(values, by_columns)
    by_heads: Tensor = out.to(query.dtype).unflatten(0, query.shape[:2])
    return by_heads
