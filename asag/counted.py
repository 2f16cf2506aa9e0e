"""An operator that remembers how many image tokens its layers had: what it computes is the same."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from asag.blocks import Address
from asag.operators import Operator


@dataclass(frozen=True, eq=False)
class Counted(Operator):
    """Adds to `tokens` the number of image tokens among which each layer attended, as often as it ran.

    With one token every attention map is the same, so nothing is weakened. Comparing the two predictions does not show
    it: they are computed in batches of different sizes and differ by rounding.
    """

    operator: Operator
    tokens: set[int] = field(default_factory=set)

    @property
    def changes_nothing(self) -> bool:
        """Whether layers ran, and all of them on a single token."""
        return self.tokens == {1}

    def at(self, address: Address) -> Operator:
        return Counted(self.operator.at(address), self.tokens)

    def plain(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        self.tokens.add(key.shape[2])
        return self.operator.plain(query, key, value, grid)

    def joint(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        image: slice,
        grid: tuple[int, int] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        self.tokens.add(len(range(*image.indices(key.shape[2]))))
        return self.operator.joint(query, key, value, image, grid, mask)

    def map_rows(self, query: Tensor, key: Tensor, chosen: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        return self.operator.map_rows(query, key, chosen, grid)
