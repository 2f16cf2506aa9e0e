"""Entropic optimal transport between tokens: Sinkhorn's iteration in the log domain, dense and streaming.

With logits ``L`` of shape (n, m) and uniform marginals, one iteration (paper: Algorithm 1, lines 3 and 4) is

    f <- -log n - LSE_j(L_ij + g_j)        rows
    g <- -log m - LSE_i(L_ij + f_i)        columns

from ``g = 0``. The solver below knows only a function that does one such sweep; how the sweep is computed, from a
whole matrix or tile by tile from queries and keys, is the business of the two classes that supply it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# A tile should stay in a core's second-level cache on a CPU, and fill an accelerator without exhausting it.
CPU_TILE_BYTES = 1 << 20
DEVICE_TILE_BYTES = 1 << 27

# A column whose mass comes near the smallest normal number has lost digits: its sum is taken again in the log domain.
SMALLEST_COLUMN_MASS = {torch.float32: 1e-30, torch.float64: 1e-290}


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

    A sweep is fused: with ``P = softmax_rows(L + g)`` the new potential is ``g - log(m * mean_i P_ij)``, so that
    nothing exceeds 1 and the scores are formed once. Two tile-sized buffers are kept and reused: fresh ones would
    cost a page fault per page.
    """

    def __init__(self, query: Tensor, key: Tensor, scale: float, dtype: torch.dtype) -> None:
        self.query, self.key, self.scale, self.dtype = query, key, scale, dtype
        self.heads, self.n, self.m = query.shape[0], query.shape[1], key.shape[1]
        limit = CPU_TILE_BYTES if query.device.type == "cpu" else DEVICE_TILE_BYTES
        elements = max(limit // torch.empty((), dtype=dtype).element_size(), self.m)
        self.tile_heads = min(max(elements // (self.n * self.m), 1), self.heads)
        self.tile_rows = min(max(elements // self.m, 1), self.n)
        self.buffers = query.new_empty(2, self.tile_heads * self.tile_rows * self.m, dtype=dtype)

    def start(self) -> Tensor:
        return self.query.new_zeros(self.heads, self.m, dtype=self.dtype)

    def tiles(self) -> Iterator[tuple[slice, Tensor, list[slice]]]:
        """Per group of heads: its slice, its keys transposed (group, d, m), and the slices of its rows."""
        for head in range(0, self.heads, self.tile_heads):
            group = slice(head, min(head + self.tile_heads, self.heads))
            keys = self.key[group].to(self.dtype).transpose(1, 2)
            yield group, keys, [slice(r, min(r + self.tile_rows, self.n)) for r in range(0, self.n, self.tile_rows)]

    def scores(self, group: slice, rows: slice, keys: Tensor, key_potential: Tensor) -> tuple[Tensor, Tensor]:
        """``L + g`` of one tile, and a second buffer of its shape; both are overwritten by the next call."""
        shape = (group.stop - group.start, rows.stop - rows.start, self.m)
        first, second = (buffer[: math.prod(shape)].view(shape) for buffer in self.buffers)
        query = self.query[group, rows].to(self.dtype)
        torch.baddbmm(key_potential[group, None], query, keys, alpha=self.scale, out=first)
        return first, second

    def sweep(self, key_potential: Tensor) -> Tensor:
        mass = torch.zeros_like(key_potential)
        for group, keys, row_slices in self.tiles():
            for rows in row_slices:
                scores, plan = self.scores(group, rows, keys, key_potential)
                torch.softmax(scores, dim=-1, out=plan)
                mass[group] += plan.sum(dim=1)
        if bool((mass < SMALLEST_COLUMN_MASS[self.dtype]).any()):
            return self._sweep_in_log_domain(key_potential)
        return key_potential - torch.log(mass * (self.m / self.n))

    def _sweep_in_log_domain(self, key_potential: Tensor) -> Tensor:
        """The same sweep where a column's mass underflows: its log-sum-exp, accumulated over tiles."""
        log_mass = torch.full_like(key_potential, -math.inf)
        for group, keys, row_slices in self.tiles():
            for rows in row_slices:
                scores, plan = self.scores(group, rows, keys, key_potential)
                torch.log_softmax(scores, dim=-1, out=plan)
                log_mass[group] = torch.logaddexp(log_mass[group], torch.logsumexp(plan, dim=1))
        return key_potential - log_mass - math.log(self.m / self.n)

    def product(self, potentials: Potentials, value: Tensor, by_columns: bool) -> Tensor:
        """Plan times n, times value (heads, m, e): (heads, n, e) in the dtype of the computation.

        Rows sum to one; `by_columns` keeps the column marginal exact instead, as Algorithm 1 does, which rescales
        row i by ``n exp(f_i + LSE_j(L_ij + g_j))``.
        """
        out = value.new_empty(self.heads, self.n, value.shape[2], dtype=self.dtype)
        for group, keys, row_slices in self.tiles():
            values = value[group].to(self.dtype)
            for rows in row_slices:
                scores, plan = self.scores(group, rows, keys, potentials.key)
                torch.softmax(scores, dim=-1, out=plan)
                tile = torch.bmm(plan, values)
                if by_columns:
                    last = torch.logsumexp(scores, dim=2, keepdim=True)
                    scores, _ = self.scores(group, rows, keys, potentials.previous)
                    tile *= torch.exp(last - torch.logsumexp(scores, dim=2, keepdim=True))
                out[group, rows] = tile
        return out
