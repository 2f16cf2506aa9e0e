"""Where the decisive cell guides: a layer and its heads, by the fingerprint alone. The rule is in protocol-cell.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from research.asag.cell.fingerprint import means, ratio
from research.lines import Line

LEAST_RATIO = 2.0  # sweeps of the opposite cost for one of ASAG's; about 5 in the paper
LEAST_COSINE = 0.5  # of a head's queries and keys
LEAST_SIZE = 0.01  # of ASAG's push beside CFG's: below, there is nothing to guide by


class Choice(NamedTuple):
    """A layer, its heads, and whether they have the fingerprint or only come nearest to it."""

    block: str
    heads: tuple[int, ...]
    found: bool

    @property
    def blocks(self) -> str:
        """As a block list names it."""
        return f"{self.block}:h{','.join(map(str, self.heads))}"


def choose(lines: Sequence[Line]) -> Choice:
    """The layer with most heads that have the fingerprint, and these; of several the one with the larger ratio.

    Where no head has it: the layer with the largest ratio, and its heads whose ratio is at least the layer's.
    Raises ValueError where there are no lines, or no layer pushes at all.
    """
    figures = {place: each for place, each in means(lines).items() if each["size"] >= LEAST_SIZE}
    layers = [block for block, head in figures if head is None]
    if not layers:
        raise ValueError("no layer of the fingerprint pushes; allowed: the lines of `python -m research fingerprint`")
    having = {block: _heads(figures, block, _has_it) for block in layers}
    best = max(layers, key=lambda block: (len(having[block]), ratio(figures[block, None])))
    if having[best]:
        return Choice(best, having[best], True)
    nearest = max(layers, key=lambda block: ratio(figures[block, None]))
    own = ratio(figures[nearest, None])
    heads = _heads(figures, nearest, lambda each: ratio(each) >= own)
    return Choice(nearest, heads or _heads(figures, nearest, lambda each: True), False)


def _has_it(figures: Mapping[str, float]) -> bool:
    return ratio(figures) >= LEAST_RATIO and figures["cosine"] >= LEAST_COSINE


def _heads(figures: Mapping[tuple[str, int | None], Mapping[str, float]], block: str, wanted: Any) -> tuple[int, ...]:
    return tuple(head for (at, head), each in figures.items() if at == block and head is not None and wanted(each))
