"""An operator of which a part is taken: the attention map of a layer is (1 - a) SoftMax + a plan."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from asag.attention import softmax_rows
from asag.blocks import Address
from asag.operators import Operator


@dataclass(frozen=True)
class Blended(Operator):
    """(1 - amount) of ordinary attention plus `amount` of what `operator` computes; 0 to 1.

    Attention is linear in its map, so the outputs are mixed and no map is built (SoftPAG, arXiv 2506.10978, does so
    for PAG). Ordinary attention is one more SDPA call per layer.
    """

    operator: Operator
    amount: float

    def at(self, address: Address) -> Operator:
        return Blended(self.operator.at(address), self.amount)

    def plain(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        return self._mixed(
            F.scaled_dot_product_attention(query, key, value), self.operator.plain(query, key, value, grid)
        )

    def joint(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        image: slice,
        grid: tuple[int, int] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Text queries attend as they do; the rows of image queries are mixed."""
        out = self.operator.joint(query, key, value, image, grid, mask)
        rows = mask if mask is None or mask.shape[2] == 1 else mask[:, :, image]
        ordinary = F.scaled_dot_product_attention(query[:, :, image], key, value, attn_mask=rows)
        mixed = self._mixed(ordinary, out[:, :, image])
        return torch.cat([out[:, :, : image.start], mixed, out[:, :, image.stop :]], dim=2)

    def map_rows(self, query: Tensor, key: Tensor, chosen: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        ordinary = softmax_rows(query[:, :, chosen], key, 1 / math.sqrt(query.shape[3]))
        return self._mixed(ordinary, self.operator.map_rows(query, key, chosen, grid))

    def _mixed(self, ordinary: Tensor, weakened: Tensor) -> Tensor:
        # Of large logits a map is computed in float64.
        dtype = torch.promote_types(ordinary.dtype, weakened.dtype)
        return torch.lerp(ordinary.to(dtype), weakened.to(dtype), self.amount)
