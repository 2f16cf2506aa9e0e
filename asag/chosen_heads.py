"""Layers of which only some heads attend by the operator; the others attend as they do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asag.attention import softmax_rows
from asag.blocks import Address
from asag.heads import Heads
from asag.operators import Operator
from asag.precision import at_least_float32

# Of a layer's heads the best one in so many counts as aligned, at least one. A choice: nobody has measured what suits.
ALIGNED_ONE_IN = 4


class LayerHeads:
    """The heads of one layer that attend by the operator, in one run.

    The aligned ones are chosen when the layer first runs, and kept: on the device, so that the host doesn't wait.
    """

    def __init__(self, address: Address, wanted: Heads) -> None:
        self.address, self.wanted = address, wanted
        self.order: Tensor | None = None
        self.chosen = 0

    def ordered(self, query: Tensor, key: Tensor) -> Tensor:
        """The numbers of all heads, int64 on the tensors' device; the first `chosen` are the chosen ones.

        query and key are (batch, heads, tokens, head_dim), of the layer's image tokens. Raises BlocksError when the
        layer lacks a head that is named.
        """
        count = query.shape[1]
        if self.order is None or self.order.shape[0] != count:
            self.wanted.check(self.address, count)
            self.order, self.chosen = self._choose(query, key)
        self.order = self.order.to(query.device)
        return self.order

    def _choose(self, query: Tensor, key: Tensor) -> tuple[Tensor, int]:
        """All heads, the chosen ones first, and how many those are."""
        count, numbers = query.shape[1], self.wanted.numbers()
        if not numbers:
            by_alignment = torch.sort(alignment(query, key), descending=True, stable=True).indices
            return by_alignment, max(count // ALIGNED_ONE_IN, 1)
        others = [number for number in range(count) if number not in numbers]
        return torch.tensor(numbers + others, device=query.device), len(numbers)

    def told(self) -> list[int] | None:
        """The chosen heads, in order; None before the layer ran. Reads them from the device."""
        return None if self.order is None else sorted(self.order[: self.chosen].tolist())


def alignment(query: Tensor, key: Tensor) -> Tensor:
    """How much queries and keys of a head agree: the mean over tokens i and the batch of cos(q_i, k_i), (heads,).

    query and key are (batch, heads, tokens, head_dim); keys may be more, the tokens' own come first.
    """
    own = key[:, :, : query.shape[2]]
    cosines = F.cosine_similarity(at_least_float32(query), at_least_float32(own), dim=-1)
    return cosines.mean(dim=(0, 2))


class ChosenHeads:
    """The heads that were chosen in one run, of each layer that has some named."""

    def __init__(self) -> None:
        self.layers: WeakKeyDictionary[nn.Module, list[LayerHeads]] = WeakKeyDictionary()

    def of(self, module: nn.Module, address: Address, wanted: Heads) -> LayerHeads:
        """Those of the layer at `address` in `module`: the same as before in this run."""
        known = self.layers.setdefault(module, [])
        for each in known:
            if (each.address, each.wanted) == (address, wanted):
                return each
        known.append(LayerHeads(address, wanted))
        return known[-1]

    def forget(self) -> None:
        """A new run begins: the aligned heads are chosen anew."""
        for each in self._all():
            each.order = None

    def told(self, aligned: bool = False) -> dict[Address, list[int]]:
        """The chosen heads by layer, or those of the aligned ones alone. Reads them from the device."""
        found = {each.address: each.told() for each in self._all() if not aligned or not each.wanted.spans}
        return {address: heads for address, heads in found.items() if heads is not None}

    def _all(self) -> list[LayerHeads]:
        return [each for known in self.layers.values() for each in known]


@dataclass(frozen=True)
class OnHeads(Operator):
    """`operator` on the chosen heads of a layer, SoftMax attention on the others: each head is computed once."""

    operator: Operator
    heads: LayerHeads

    def plain(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        def weakened(heads: Tensor) -> Tensor:
            return self.operator.plain(query[:, heads], key[:, heads], value[:, heads], grid)

        def ordinary(heads: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(query[:, heads], key[:, heads], value[:, heads])

        return self._together(query, key, weakened, ordinary)

    def joint(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        image: slice,
        grid: tuple[int, int] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        def mask_of(heads: Tensor) -> Tensor | None:
            return mask if mask is None or mask.shape[1] == 1 else mask[:, heads]

        def weakened(heads: Tensor) -> Tensor:
            return self.operator.joint(query[:, heads], key[:, heads], value[:, heads], image, grid, mask_of(heads))

        def ordinary(heads: Tensor) -> Tensor:
            given = query[:, heads], key[:, heads], value[:, heads]
            return F.scaled_dot_product_attention(*given, attn_mask=mask_of(heads))

        return self._together(query[:, :, image], key[:, :, image], weakened, ordinary)

    def map_rows(self, query: Tensor, key: Tensor, chosen: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        def weakened(heads: Tensor) -> Tensor:
            return self.operator.map_rows(query[:, heads], key[:, heads], chosen, grid)

        def ordinary(heads: Tensor) -> Tensor:
            return softmax_rows(query[:, heads][:, :, chosen], key[:, heads], 1 / math.sqrt(query.shape[3]))

        return self._together(query, key, weakened, ordinary)

    def _together(
        self, query: Tensor, key: Tensor, weakened: Callable[[Tensor], Tensor], ordinary: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """What the two make of their heads, in the heads' order."""
        order, chosen = self.heads.ordered(query, key), self.heads.chosen
        parts = [weakened(order[:chosen])]
        if chosen < order.shape[0]:
            parts.append(ordinary(order[chosen:]).to(parts[0].dtype))
        return torch.cat(parts, dim=1)[:, torch.argsort(order)]
