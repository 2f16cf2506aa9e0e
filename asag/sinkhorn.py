"""Entropic optimal transport between tokens: Sinkhorn's iteration in the log domain, dense and streaming.

With logits ``L`` of shape (n, m) and uniform marginals, one iteration (paper: Algorithm 1, lines 3 and 4) is

    f <- -log n - LSE_j(L_ij + g_j)        rows
    g <- -log m - LSE_i(L_ij + f_i)        columns

from ``g = 0``. The solver below knows only a function that does one such sweep; how the sweep is computed, from a
whole matrix or tile by tile from queries and keys, is the business of the two classes that supply it.

Two signs of the paper aren't followed. Algorithm 1 goes on while Δv < ε_max (line 2), and Δv begins at ∞, so that it
would never run; `iterate` goes on while the change is at least the tolerance. Eq. 6 subtracts <P, log P> / λ, which
would minimise the entropy; what Algorithm 1's updates solve, and the code, adds it, as Sinkhorn distances do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# A tile should stay in the second-level caches of a CPU's cores.
CPU_TILE_BYTES_PER_THREAD = 1 << 20

# A column whose mass comes near the smallest normal number has lost digits: its sum is taken again in the log domain.
SMALLEST_COLUMN_MASS = {torch.float32: 1e-30, torch.float64: 1e-290}

# With every |logit| at most B (Cauchy-Schwarz), the numbers of a sweep by scaling lie in exp(±2B) times the token
# counts, so exp needs no maximum subtracted: exp(70) times 10^6 tokens and its inverse are normal in float32.
LARGEST_SCALED_LOGIT = {torch.float32: 35.0, torch.float64: 300.0}


def bound_logits(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Per head, what no ``|scale * query keyᵀ|`` exceeds (Cauchy-Schwarz), in at least float32: (…, n, d) to (…)."""
    dtype = torch.promote_types(torch.promote_types(query.dtype, key.dtype), torch.float32)
    longest = [torch.linalg.vector_norm(tensor, dim=-1, dtype=dtype).amax(dim=-1) for tensor in (query, key)]
    bound: Tensor = longest[0] * longest[1] * abs(scale)
    return bound


def cpu_tile_bytes() -> int:
    return CPU_TILE_BYTES_PER_THREAD * torch.get_num_threads()


class Potentials(NamedTuple):
    """Key potentials after the last sweep and before it, each (heads, keys), in the dtype of the computation.

    The row potential of the last sweep is ``f_i = -log n - LSE_j(L_ij + previous_j)``.
    """

    key: Tensor
    previous: Tensor


def iterate(sweep: Callable[[Tensor], Tensor], start: Tensor, iterations: int, tolerance: float | None) -> Potentials:
    """Apply `sweep` to the key potential `start` (heads, keys) up to `iterations` times.

    With a `tolerance`, a head whose mean ``|g - g_previous|`` over its keys falls below it keeps its potentials from
    then on (so that a head's result doesn't depend on what it is batched with), and the loop ends when all have.
    """
    key = previous = start
    moving = torch.ones_like(start[:, :1], dtype=torch.bool)
    for _ in range(iterations):
        swept = sweep(key)
        if tolerance is None:
            key, previous = swept, key
            continue
        step = (swept - key).abs().mean(dim=-1, keepdim=True)
        key, previous = torch.where(moving, swept, key), torch.where(moving, key, previous)
        moving = moving & (step >= tolerance)
        if not bool(moving.any()):
            break
    return Potentials(key, previous)


class DenseScores:
    """The readable reference: the whole matrix of logits, (heads, n, m)."""

    def __init__(self, query: Tensor, key: Tensor, scale: float) -> None:
        self.logits = query @ key.transpose(-1, -2) * scale

    def start(self) -> Tensor:
        return self.logits.new_zeros(self.logits.shape[0], self.logits.shape[2])

    def row_potential(self, key_potential: Tensor) -> Tensor:
        """f (heads, n) for a g (heads, m)."""
        return -math.log(self.logits.shape[1]) - torch.logsumexp(self.logits + key_potential[:, None], dim=2)

    def sweep(self, key_potential: Tensor) -> Tensor:
        rows = self.row_potential(key_potential)
        return -math.log(self.logits.shape[2]) - torch.logsumexp(self.logits + rows[:, :, None], dim=1)


class StreamingScores:
    """Logits ``scale * query keyᵀ``, formed tile by tile and never kept: query (heads, n, d), key (heads, m, d).

    A sweep is fused, so that the scores are formed once. With ``P_ij = exp(L_ij + g_j) / Σ_k exp(L_ik + g_k)``:

        f_i  = -log n - LSE_j(L_ij + g_j)                the update of rows
        exp(L_ij + f_i) = P_ij exp(-g_j) / n             what it makes of a score, by the definition of P
        g'_j = -log m - log Σ_i P_ij exp(-g_j) / n       put into the update of columns
             = g_j - log(m * mean_i P_ij)                g_j is in no sum over i

    Heads whose logits are known to be small take fewer passes over a tile, by scaling.
    Tile-sized buffers are kept and reused: fresh ones would cost a page fault per page.
    """

    def __init__(
        self, query: Tensor, key: Tensor, scale: float, dtype: torch.dtype, largest_logit: float = math.inf
    ) -> None:
        """`largest_logit` is a bound on every |logit|, where the caller knows one."""
        self.query, self.scale, self.dtype = query, scale, dtype
        self.heads, self.n, self.m = query.shape[0], query.shape[1], key.shape[1]
        elements = max(cpu_tile_bytes() // dtype.itemsize, self.m)
        self.tile_heads = min(max(elements // (self.n * self.m), 1), self.heads)
        self.tile_rows = min(max(elements // self.m, 1), self.n)
        self.buffers: list[Tensor] = []
        self.one_tile = (self.tile_heads, self.tile_rows) == (self.heads, self.n)
        self.kernel: Tensor | None = None
        keys, self.largest_logits = key.to(dtype), [largest_logit] * self.heads
        if largest_logit > LARGEST_SCALED_LOGIT[dtype]:
            # In many models keys share a large mean. It moves each row of logits by a constant, which no plan sees.
            keys = keys - keys.mean(dim=1, keepdim=True)
            self.largest_logits = bound_logits(query, keys, scale).tolist()
        self.keys = keys.transpose(1, 2)
        if self.tile_rows < self.n:
            # Products of many tiles with the same keys are faster where the keys' rows are contiguous.
            self.keys = self.keys.contiguous()

    def start(self) -> Tensor:
        return self.query.new_zeros(self.heads, self.m, dtype=self.dtype)

    def tiles(self) -> Iterator[tuple[slice, Tensor, list[slice]]]:
        """Per group of heads: its slice, its keys transposed (group, d, m), and the slices of its rows."""
        for head in range(0, self.heads, self.tile_heads):
            group = slice(head, min(head + self.tile_heads, self.heads))
            rows = [slice(r, min(r + self.tile_rows, self.n)) for r in range(0, self.n, self.tile_rows)]
            yield group, self.keys[group], rows

    def buffer(self, index: int, group: slice, rows: slice) -> Tensor:
        """Buffer 0 or 1 in the shape of one tile, overwritten by the next call for it."""
        while len(self.buffers) <= index:
            self.buffers.append(self.query.new_empty(self.tile_heads * self.tile_rows * self.m, dtype=self.dtype))
        shape = (group.stop - group.start, rows.stop - rows.start, self.m)
        return self.buffers[index][: math.prod(shape)].view(shape)

    def scores(self, group: slice, rows: slice, keys: Tensor, key_potential: Tensor | None) -> Tensor:
        """``L + g`` of one tile, or ``L`` without a potential, in buffer 0."""
        query, out = self.query[group, rows].to(self.dtype), self.buffer(0, group, rows)
        if key_potential is None:
            return torch.baddbmm(out, query, keys, beta=0, alpha=self.scale, out=out)
        return torch.baddbmm(key_potential[group, None], query, keys, alpha=self.scale, out=out)

    def sweep(self, key_potential: Tensor) -> Tensor:
        swept = torch.empty_like(key_potential)
        for group, keys, row_slices in self.tiles():
            if max(self.largest_logits[group]) <= LARGEST_SCALED_LOGIT[self.dtype]:
                swept[group] = self._sweep_by_scaling(key_potential[group], group, keys, row_slices)
            else:
                swept[group] = self._sweep_by_softmax(key_potential, group, keys, row_slices)
        return swept - math.log(self.m / self.n)

    def _sweep_by_scaling(self, potential: Tensor, group: slice, keys: Tensor, row_slices: list[slice]) -> Tensor:
        """One group's sweep as Sinkhorn's scaling, without ``-log(m / n)``. With ``K = exp(L)`` and ``w = exp(g)``:

            exp(f_i)   = 1 / (n (K w)_i)                          the update of rows, exponentiated
            exp(-g'_j) = m Σ_i K_ij exp(f_i)                      the update of columns, exponentiated
                       = (m / n) (Kᵀ (1 / (K w)))_j               the first put into the second
            g'         = -log(Kᵀ (1 / (K w))) - log(m / n)        w e^-t in place of w makes it smaller by t: add t

        One exp and two matrix-vector products per tile; where one tile is all there is, K is kept for the next sweep.
        `potential` (group, m) is that of the group.
        """
        top = potential.amax(dim=1, keepdim=True)
        weights = torch.exp(potential - top)[:, :, None]
        inverse = torch.zeros_like(potential)[:, None]
        for rows in row_slices:
            kernel = self.scores(group, rows, keys, None).exp_() if self.kernel is None else self.kernel
            self.kernel = kernel if self.one_tile else None
            inverse.baddbmm_(torch.bmm(kernel, weights).reciprocal_().transpose(1, 2), kernel)
        return top - torch.log(inverse[:, 0])

    def _sweep_by_softmax(self, key_potential: Tensor, group: slice, keys: Tensor, row_slices: list[slice]) -> Tensor:
        """One group's sweep for logits of any size."""
        mass = torch.zeros_like(key_potential[group])
        for rows in row_slices:
            plan = self.buffer(1, group, rows)
            torch.softmax(self.scores(group, rows, keys, key_potential), dim=-1, out=plan)
            mass += plan.sum(dim=1)
        if bool((mass >= SMALLEST_COLUMN_MASS[self.dtype]).all()):
            return key_potential[group] - torch.log(mass)
        # A column's mass underflows: its log-sum-exp, accumulated over tiles.
        log_mass = torch.full_like(mass, -math.inf)
        for rows in row_slices:
            plan = self.buffer(1, group, rows)
            torch.log_softmax(self.scores(group, rows, keys, key_potential), dim=-1, out=plan)
            log_mass = torch.logaddexp(log_mass, torch.logsumexp(plan, dim=1))
        return key_potential[group] - log_mass

    def product(self, potentials: Potentials, value: Tensor, by_columns: bool) -> Tensor:
        """Plan times n, times value (heads, m, e): (heads, n, e) in the dtype of the computation.

        Rows sum to one; `by_columns` keeps the column marginal exact instead, as Algorithm 1 does, which rescales
        row i by ``n exp(f_i + LSE_j(L_ij + g_j))``.
        """
        out = value.new_empty(self.heads, self.n, value.shape[2], dtype=self.dtype)
        for group, keys, row_slices in self.tiles():
            values = value[group].to(self.dtype)
            for rows in row_slices:
                scores, plan = self.scores(group, rows, keys, potentials.key), self.buffer(1, group, rows)
                torch.softmax(scores, dim=-1, out=plan)
                tile = torch.bmm(plan, values)
                if by_columns:
                    last = torch.logsumexp(scores, dim=2, keepdim=True)
                    scores = self.scores(group, rows, keys, potentials.previous)
                    tile *= torch.exp(last - torch.logsumexp(scores, dim=2, keepdim=True))
                out[group, rows] = tile
        return out
