"""Layers of which only some heads attend by the operator; the others attend as they do."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Order:
    """All heads of each row, the chosen ones first: `heads`, int64 (rows, heads) on the layer's device; `places`: where
    each head is there. One row where all have the same."""

    heads: Tensor
    chosen: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", torch.argsort(self.heads, dim=1))
        object.__setattr__(self, "rows", torch.arange(self.heads.shape[0], device=self.heads.device)[:, None])

    places: Tensor = field(init=False)
    rows: Tensor = field(init=False)

    def sorted(self, tensor: Tensor) -> Tensor:
        """A tensor (batch, heads, …), or one row for all of them, with the chosen heads first."""
        return self._taken(tensor, self.heads)

    def back(self, tensor: Tensor) -> Tensor:
        """The contrary."""
        return self._taken(tensor, self.places)

    def _taken(self, tensor: Tensor, heads: Tensor) -> Tensor:
        if heads.shape[0] == 1:
            return tensor[:, heads[0]]
        return tensor[self.rows[: tensor.shape[0]], heads]


class LayerHeads:
    """The heads of one layer that attend by the operator, in one run.

    The aligned ones are chosen when the layer first runs, for each row of the batch, so that a picture's don't depend
    on the others; and kept: on the device, so that the host doesn't wait. Hosts run rows in the same order in each
    step. Where they split them into calls of other sizes, each size has heads of its own.
    """

    def __init__(self, address: Address, wanted: Heads) -> None:
        self.address, self.wanted = address, wanted
        self.order: Order | None = None
        # By the number of rows, and of heads; and those of a model that was there before, to be told.
        self.kept: dict[tuple[int, int], Order] = {}
        self.earlier: list[Order] = []
        numbers = wanted.numbers()
        self.in_order = bool(numbers) and numbers == list(range(len(numbers)))

    def choose(self, query: Tensor, key: Tensor) -> int:
        """How many heads are chosen. Chooses them when the layer first runs; query and key are (batch, heads, tokens,
        head_dim), of its image tokens.

        Raises BlocksError when the layer lacks a head that is named.
        """
        rows, count = query.shape[0], query.shape[1]
        known = self.kept.get((rows, count))
        if known is None or known.heads.device != query.device:
            self.wanted.check(self.address, count)
            known = self.kept[rows, count] = self._chosen(query, key)
        self.order = known
        return known.chosen

    def _chosen(self, query: Tensor, key: Tensor) -> Order:
        count, numbers = query.shape[1], self.wanted.numbers()
        if numbers:
            others = [number for number in range(count) if number not in numbers]
            return Order(torch.tensor([numbers + others], device=query.device), len(numbers))
        best = torch.sort(alignment(query, key), dim=1, descending=True, stable=True).indices
        return Order(best, max(count // ALIGNED_ONE_IN, 1))

    def sorted(self, tensor: Tensor) -> Tensor:
        """A tensor (batch, heads, …) of the rows given to `choose`, or one row for all, with the chosen heads first."""
        return tensor if self.in_order or self.order is None else self.order.sorted(tensor)

    def back(self, tensor: Tensor) -> Tensor:
        """The contrary."""
        return tensor if self.in_order or self.order is None else self.order.back(tensor)

    def forget(self, told: bool = False) -> None:
        """The aligned heads are chosen anew. With `told` those that were chosen so far are told all the same."""
        self.earlier = [*self.earlier, *self.kept.values()] if told else []
        self.order, self.kept = None, {}

    def told(self) -> list[tuple[int, ...]]:
        """The chosen heads, in order; several times where pictures or models differ. Reads them from the device."""
        found = [row for each in (*self.earlier, *self.kept.values()) for row in each.heads[:, : each.chosen].tolist()]
        return list(dict.fromkeys(tuple(sorted(row)) for row in found))


def alignment(query: Tensor, key: Tensor) -> Tensor:
    """How much queries and keys of a head agree: the mean over tokens i of cos(q_i, k_i), (batch, heads).

    query and key are (batch, heads, tokens, head_dim); keys may be more, the tokens' own come first.
    """
    own = key[:, :, : query.shape[2]]
    cosines = F.cosine_similarity(at_least_float32(query), at_least_float32(own), dim=-1)
    return cosines.mean(dim=2)


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

    def forget(self, told: bool = False) -> None:
        """A new run begins: the aligned heads are chosen anew. With `told` the run goes on with another model, and the
        first one's heads are told, too."""
        for each in self._all():
            each.forget(told)

    def told(self, aligned: bool = False) -> dict[Address, list[tuple[int, ...]]]:
        """The chosen heads by layer, or those of the aligned ones alone; several times where pictures, passes or models
        of the run differ. Reads them from the device."""
        found: dict[Address, list[tuple[int, ...]]] = {}
        for each in self._all():
            if not aligned or not each.wanted.spans:
                before = found.setdefault(each.address, [])
                before += [heads for heads in each.told() if heads not in before]
        return {address: heads for address, heads in found.items() if heads}

    def _all(self) -> list[LayerHeads]:
        return [each for known in self.layers.values() for each in known]


@dataclass(frozen=True)
class OnHeads(Operator):
    """`operator` on the chosen heads of a layer, SoftMax attention on the others: each head is computed once."""

    operator: Operator
    heads: LayerHeads

    def plain(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        chosen = self.heads.choose(query, key)
        query, key, value = (self.heads.sorted(each) for each in (query, key, value))
        weakened = self.operator.plain(query[:, :chosen], key[:, :chosen], value[:, :chosen], grid)
        if chosen == query.shape[1]:
            return self.heads.back(weakened)
        ordinary = F.scaled_dot_product_attention(query[:, chosen:], key[:, chosen:], value[:, chosen:])
        return self.heads.back(torch.cat([weakened, ordinary.to(weakened.dtype)], dim=1))

    def joint(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        image: slice,
        grid: tuple[int, int] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        chosen = self.heads.choose(query[:, :, image], key[:, :, image])
        query, key, value = (self.heads.sorted(each) for each in (query, key, value))
        masks = [mask, mask]
        if mask is not None and mask.shape[1] > 1:
            mask = self.heads.sorted(mask)
            masks = [mask[:, :chosen], mask[:, chosen:]]
        weakened = self.operator.joint(query[:, :chosen], key[:, :chosen], value[:, :chosen], image, grid, masks[0])
        if chosen == query.shape[1]:
            return self.heads.back(weakened)
        others = query[:, chosen:], key[:, chosen:], value[:, chosen:]
        ordinary = F.scaled_dot_product_attention(*others, attn_mask=masks[1])
        return self.heads.back(torch.cat([weakened, ordinary.to(weakened.dtype)], dim=1))

    def map_rows(self, query: Tensor, key: Tensor, chosen: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        first = self.heads.choose(query, key)
        query, key = self.heads.sorted(query), self.heads.sorted(key)
        weakened = self.operator.map_rows(query[:, :first], key[:, :first], chosen, grid)
        if first == query.shape[1]:
            return self.heads.back(weakened)
        ordinary = softmax_rows(query[:, first:][:, :, chosen], key[:, first:], 1 / math.sqrt(query.shape[3]))
        return self.heads.back(torch.cat([weakened, ordinary], dim=1))
