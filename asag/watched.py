"""An operator that is watched: what it computes is the same, and a trace notes how spread out attention was."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from asag.attention import softmax_rows
from asag.blocks import Address
from asag.operators import Operator
from asag.trace import Trace, entropy

# Of a layer's map so many rows are looked at, evenly spaced; fewer where they would take more than these elements.
ROWS = 64
ROW_ELEMENTS = 1 << 25


@dataclass(frozen=True)
class Watched(Operator):
    """Notes in `trace` the entropy of the ordinary map and of the operator's, each time a layer runs.

    Both are means over the rows of the batch, over heads and over a sample of the image tokens; in joint attention
    both are restricted to image keys. Without an address, which `at` gives, nothing is noted.
    """

    operator: Operator
    trace: Trace
    address: Address | None = None

    def at(self, address: Address) -> Operator:
        return Watched(self.operator.at(address), self.trace, address)

    def plain(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        out = self.operator.plain(query, key, value, grid)
        self._note(query, key, grid)
        return out

    def joint(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        image: slice,
        grid: tuple[int, int] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        out = self.operator.joint(query, key, value, image, grid, mask)
        self._note(query[:, :, image], key[:, :, image], grid)
        return out

    def map_rows(self, query: Tensor, key: Tensor, chosen: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        return self.operator.map_rows(query, key, chosen, grid)

    def _note(self, query: Tensor, key: Tensor, grid: tuple[int, int] | None) -> None:
        if self.address is None:
            return
        with torch.no_grad():
            chosen = sample_rows(query, key)
            ordinary = softmax_rows(query[:, :, chosen], key, 1 / math.sqrt(query.shape[3]))
            weakened = self.operator.map_rows(query, key, chosen, grid)
            self.trace.add_entropies(self.address, entropy(ordinary), entropy(weakened))


def sample_rows(query: Tensor, key: Tensor) -> Tensor:
    """The numbers of the queries that are looked at, int64 on the query's device: at most ROWS, evenly spaced."""
    affordable = ROW_ELEMENTS // (query.shape[0] * query.shape[1] * key.shape[2])
    rows = max(min(ROWS, query.shape[2], affordable), 1)
    # Each in the middle of its stretch of tokens.
    return torch.tensor([(2 * row + 1) * query.shape[2] // (2 * rows) for row in range(rows)], device=query.device)
