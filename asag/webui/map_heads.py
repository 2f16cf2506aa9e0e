"""A block of the map, opened into its heads: which are chosen, and what a click on one makes of the list."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from asag.blocks import Address
from asag.heads import Heads

ALIGNED = Heads()


def count_of(layers: Sequence[Address], counts: Mapping[Address, int]) -> int | None:
    """How many heads each of a block's layers has; None when that isn't known, or they differ."""
    found = {counts.get(layer) for layer in layers}
    return found.pop() if len(found) == 1 else None


def states(
    layers: Sequence[Address], chosen: Collection[Address], heads: Mapping[Address, Heads], count: int
) -> list[str]:
    """Of each head of a block: "true" when all its layers have it chosen, "mixed" when some do, else "false".

    The aligned ones aren't known before the model runs: none of them counts as chosen.
    """
    taken = [_taken(layer, chosen, heads, count) for layer in layers]
    found = [sum(number in each for each in taken) for number in range(count)]
    return ["true" if of == len(layers) else "mixed" if of else "false" for of in found]


def toggled(
    layers: Sequence[Address], chosen: Collection[Address], heads: Mapping[Address, Heads], named: Heads, count: int
) -> dict[Address, Heads | None]:
    """The layers of a block that are chosen after a click on the heads `named`, with their heads (None: all).

    The heads are added to each layer, or taken away if all layers had them. A click on the aligned ones takes them in
    place of those chosen, or the whole block if they were chosen already. Raises BlocksError when the block lacks one.
    """
    if named == ALIGNED:
        were = all(layer in chosen and heads.get(layer) == ALIGNED for layer in layers)
        return dict.fromkeys(layers, None if were else ALIGNED)
    named.check(layers[0], count)
    numbers = set(named.numbers())
    taken = {layer: _taken(layer, chosen, heads, count) for layer in layers}
    everywhere = all(numbers <= each for each in taken.values())
    after = {layer: each - numbers if everywhere else each | numbers for layer, each in taken.items()}
    return {layer: _written(each, count) for layer, each in after.items() if each}


def _taken(layer: Address, chosen: Collection[Address], heads: Mapping[Address, Heads], count: int) -> set[int]:
    if layer not in chosen:
        return set()
    return set(heads[layer].numbers()) if layer in heads else set(range(count))


def _written(numbers: set[int], count: int) -> Heads | None:
    """Heads in ranges; None: all of them."""
    if len(numbers) == count:
        return None
    firsts = [number for number in sorted(numbers) if number - 1 not in numbers]
    lasts = [number for number in sorted(numbers) if number + 1 not in numbers]
    return Heads(tuple(zip(firsts, lasts, strict=True)))
