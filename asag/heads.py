"""Heads of a layer in a list of blocks: parse and print. Knows no models.

mid:h0-3      heads 0 to 3 of each layer of the middle block
out.3.0:h2,5  heads 2 and 5: numbers and ranges that follow a comma go on naming heads, since no block begins so
mid:aligned   those whose queries and keys agree most (see chosen_heads.py)
all:aligned   the same in every layer; auto and late take heads, too
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from asag.echo import shown

ALIGNED = "aligned"
ALLOWED = "heads such as mid:h0-3, mid:h2,5 or mid:aligned"
NUMBERS = re.compile("h?([0-9]{1,4})(?:-([0-9]{1,4}))?")

Span = tuple[int, int]


class BlocksError(ValueError):
    """A block list that can't be read, or that names what a model doesn't have."""


@dataclass(frozen=True)
class Heads:
    """Ranges of heads, both ends included; none: those whose queries and keys agree most."""

    spans: tuple[Span, ...] = ()

    def __str__(self) -> str:
        return "h" + ",".join(map(print_span, self.spans)) if self.spans else ALIGNED

    def numbers(self) -> list[int]:
        """The heads named, each once, in order; empty for the aligned ones."""
        found: list[int] = []
        for first, last in sorted(self.spans):
            # A list may name the same thousands of heads hundreds of times.
            found += range(max(first, found[-1] + 1) if found else first, last + 1)
        return found

    def check(self, place: object, count: int) -> None:
        """Raise BlocksError when the layer at the address `place`, of `count` heads, lacks one that is named."""
        if any(last >= count for _, last in self.spans):
            raise BlocksError(f"'{place}:{self}'; {place} has: heads 0 to {count - 1}")


def split_items(text: str) -> list[str]:
    """The items of a list: a comma ends one, but for what can only be one more number of a head."""
    items: list[str] = []
    for item in filter(None, (each.strip() for each in text.split(","))):
        if items and ":h" in "".join(items[-1].split()) and NUMBERS.fullmatch("".join(item.split())):
            items[-1] += f",{item}"
        else:
            items.append(item)
    return items


def split_heads_off(item: str) -> tuple[str, Heads | None]:
    """An item's address and the heads it names; None: all of them.

    Raises:
        BlocksError: naming the item and what is allowed.
    """
    address, colon, text = item.partition(":")
    text = "".join(text.split())
    if not colon:
        return item, None
    if text == ALIGNED:
        return address.strip(), Heads()
    found = [NUMBERS.fullmatch(each) for each in text.split(",")]
    if not text.startswith("h") or not all(found):
        raise BlocksError(f"{shown(item)}; allowed: {ALLOWED}")
    spans = tuple((int(each[1]), int(each[2] or each[1])) for each in found if each)
    falling = next((span for span in spans if span[0] > span[1]), None)
    if falling:
        raise BlocksError(f"{shown(item)}; allowed: ranges that rise, such as h{falling[1]}-{falling[0]}")
    return address.strip(), Heads(spans)


Place = TypeVar("Place", bound=Hashable)


def joined(named: Iterable[tuple[Place, Heads | None]]) -> dict[Place, Heads]:
    """The heads of each layer, of all items that name it; a layer that any item names without heads isn't there.

    Raises:
        BlocksError: when one item names a layer's heads by number, and another one the aligned ones.
    """
    found: dict[Place, Heads | None] = {}
    for place, heads in named:
        before = found.get(place, heads)
        if before is None or heads is None:
            found[place] = None
        elif bool(before.spans) != bool(heads.spans):
            raise BlocksError(f"'{place}:{before}' and '{place}:{heads}'; allowed: one of them")
        elif place not in found or heads != before:
            found[place] = heads if place not in found else Heads(before.spans + heads.spans)
    return {place: heads for place, heads in found.items() if heads is not None}


def print_span(span: Span) -> str:
    return str(span[0]) if span[0] == span[1] else f"{span[0]}-{span[1]}"
