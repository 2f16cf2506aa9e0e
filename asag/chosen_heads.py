"""Layers of which only some heads attend by the operator; the others attend as they do."""

from __future__ import annotations

import math
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
        # All heads, the chosen ones first, and each head's place there; int64, on the layer's device.
        self.order: Tensor | None = None
        self.places: Tensor | None = None
        self.chosen = 0
        numbers = wanted.numbers()
        self.in_order = bool(numbers) and numbers == list(range(len(numbers)))

    def choose(self, query: Tensor, key: Tensor) -> int:
        """How many heads are chosen. Chooses them when the layer first runs; query and key are (batch, heads, tokens,
        head_dim), of its image tokens.

        Raises BlocksError when the layer lacks a head that is named.
        """
        count, numbers = query.shape[1], self.wanted.numbers()
        if self.order is None or self.order.shape[0] != count or self.order.device != query.device:
            self.wanted.check(self.address, count)
            if numbers:
                others = [number for number in range(count) if number not in numbers]
                self.order, self.chosen = torch.tensor(numbers + others, device=query.device), len(numbers)
            else:
                self.order = torch.sort(alignment(query, key), descending=True, stable=True).indices
                self.chosen = max(count // ALIGNED_ONE_IN, 1)
            self.places = torch.argsort(self.order)
        return self.chosen

    def sorted(self, tensor: Tensor) -> Tensor:
        """A tensor (batch, heads, …) with the chosen heads first."""
        return tensor if self.in_order else tensor[:, self.order]

    def back(self, tensor: Tensor) -> Tensor:
        """The contrary."""
        return tensor if self.in_order else tensor[:, self.places]

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
