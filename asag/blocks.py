"""Block addresses: parse, print, match. A pure parser; knows no models.

    UNet  in.4   mid   out.3          DiT  joint.7   double.3   single.12   layer.5
    one layer inside a block:  out.3.0        ranges:  in.4-8, out.3.0-1        lists:  mid, out.3-5
    auto: the model family's default          late: later, which is cheaper          all: every self-attention layer

The spelling d4, m0, u3.1 known from other guidance extensions is read as in.4, mid, out.3.1.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from asag.echo import shown

PARTS = ("in", "mid", "out", "joint", "double", "single", "layer")
ALIASES = {"d": "in", "m": "mid", "u": "out"}
KEYWORDS = ("auto", "late", "all")
EXAMPLES = (
    "auto, late, all, mid, in.4, out.3.0, in.4-8, joint.7, double.3, single.10-19, layer.5, or a list with commas"
)
LONGEST_TEXT = 2000

SPAN = r"([0-9]{1,4})(?:-([0-9]{1,4}))?"
SELECTOR = re.compile(rf"(in|out|joint|double|single|layer)\.{SPAN}(?:\.{SPAN})?|(mid)(?:\.{SPAN})?")
ALIAS = re.compile(rf"([dmu]){SPAN}(?:\.{SPAN})?|(m)")


class BlocksError(ValueError):
    """A block list that can't be read, or that names what a model doesn't have."""


class Address(NamedTuple):
    """One self-attention layer: its part, the block's number (0 for the middle) and the layer's number inside it."""

    part: str
    block: int
    layer: int

    def __str__(self) -> str:
        return f"{block_name(self)}.{self.layer}"


Span = tuple[int, int]


@dataclass(frozen=True)
class Selector:
    """What one item of a list selects: a part, a range of blocks and a range of layers (None: all of them)."""

    part: str
    blocks: Span = (0, 0)
    layers: Span | None = None

    def __contains__(self, address: Address) -> bool:
        return (
            address.part == self.part
            and self.blocks[0] <= address.block <= self.blocks[1]
            and (self.layers is None or self.layers[0] <= address.layer <= self.layers[1])
        )

    def __str__(self) -> str:
        blocks = "" if self.part == "mid" else "." + _print_span(self.blocks)
        return self.part + blocks + ("" if self.layers is None else "." + _print_span(self.layers))


@dataclass(frozen=True)
class BlockList:
    """A parsed list. `keyword` is one of KEYWORDS or "" (then the selectors count)."""

    selectors: tuple[Selector, ...] = ()
    keyword: str = ""

    def __str__(self) -> str:
        return self.keyword or ", ".join(map(str, self.selectors))


def parse_blocks(text: str) -> BlockList:
    """Read a list of addresses (see the module's text). Case and blanks don't matter.

    Raises:
        BlocksError: naming the item that can't be read and what is allowed.
    """
    if not isinstance(text, str) or len(text) > LONGEST_TEXT:
        raise BlocksError(f"{shown(text)}; allowed: text of at most {LONGEST_TEXT} characters: {EXAMPLES}")
    items = [item.strip() for item in text.lower().split(",")]
    if len(items) == 1 and items[0] in KEYWORDS:
        return BlockList(keyword=items[0])
    if not any(items):
        raise BlocksError(f"{shown(text)}; allowed: {EXAMPLES}")
    return BlockList(tuple(_parse_selector(item) for item in items if item))


def _parse_selector(item: str) -> Selector:
    match = SELECTOR.fullmatch(item)
    if match:
        part = match[1] or match[6]
        blocks, layers = (
            ((0, 0), _span(match[7], match[8]))
            if match[6]
            else (
                _span(match[2], match[3]),
                _span(match[4], match[5]),
            )
        )
    else:
        match = ALIAS.fullmatch(item)
        if not match:
            raise BlocksError(f"{shown(item)}; allowed: {EXAMPLES}")
        part = ALIASES[match[1] or match[6]]
        blocks, layers = _span(match[2], match[3]) or (0, 0), _span(match[4], match[5])
        if part == "mid" and blocks != (0, 0):
            raise BlocksError(f"{shown(item)}; allowed: m0, since there is one middle block")
    for span in (blocks, layers):
        if span and span[0] > span[1]:
            raise BlocksError(f"{shown(item)}; allowed: ranges that rise, such as {span[1]}-{span[0]}")
    return Selector(part, blocks, layers)


def _span(first: str | None, last: str | None) -> Span | None:
    return None if first is None else (int(first), int(last or first))


def _print_span(span: Span) -> str:
    return str(span[0]) if span[0] == span[1] else f"{span[0]}-{span[1]}"


Layer = TypeVar("Layer")


def select(blocks: BlockList, inventory: Sequence[tuple[Address, Layer]], default: BlockList) -> list[Layer]:
    """The layers of an inventory that a list selects, in the model's order; `default` is what "auto" means.

    A range selects what exists inside it; every item of the list must select something.

    Raises:
        BlocksError: naming the item and, in short, the addresses that the model has.
    """
    if blocks.keyword == "all":
        return [layer for _, layer in inventory]
    chosen = {"auto": default, "late": late_blocks([address for address, _ in inventory])}.get(blocks.keyword, blocks)
    for selector in chosen.selectors:
        if not any(address in selector for address, _ in inventory):
            raise BlocksError(f"'{selector}'; this model has: {summarize(address for address, _ in inventory)}")
    return [layer for address, layer in inventory if any(address in selector for selector in chosen.selectors)]


def late_blocks(addresses: Sequence[Address]) -> BlockList:
    """What "late" means, for addresses in the model's order: the first block of a UNet's decoder that attends, or the
    block two thirds through a transformer. Less of the model follows than after its middle, so guiding costs less."""
    blocks = distinct_blocks(addresses)
    decoder = [block for block in blocks if block[0] == "out"]
    part, number = decoder[0] if decoder else blocks[len(blocks) * 2 // 3]
    return BlockList((Selector(part, (number, number)),))


def distinct_blocks(addresses: Iterable[Address]) -> list[tuple[str, int]]:
    """Part and number of each block, in order: a block may have several layers."""
    return list(dict.fromkeys((address.part, address.block) for address in addresses))


def summarize(addresses: Iterable[Address]) -> str:
    """Addresses in short, such as "in.1-2, in.4-5, mid, out.3-11"."""
    runs: list[Selector] = []
    for address in addresses:
        last = runs[-1] if runs else None
        if last and last.part == address.part and last.blocks[1] + 1 >= address.block:
            runs[-1] = Selector(address.part, (last.blocks[0], address.block))
        else:
            runs.append(Selector(address.part, (address.block, address.block)))
    return ", ".join(map(str, runs)) or "no self-attention"


def write_list(inventory: Sequence[Address], chosen: Collection[Address]) -> str:
    """A list that selects exactly `chosen` of a model's layers: whole blocks in ranges, single layers where it must."""
    blocks: dict[str, list[Address]] = {}
    for address in inventory:
        blocks.setdefault(block_name(address), []).append(address)
    items: list[str] = []
    whole: list[Address] = []
    for layers in blocks.values():
        taken = [address for address in layers if address in chosen]
        if len(taken) == len(layers):
            whole.append(taken[0])
            continue
        if whole and taken:
            items.append(summarize(whole))
            whole = []
        items += map(str, taken)
    return ", ".join([*items, summarize(whole)] if whole else items)


def block_name(address: Address) -> str:
    """The block's address without the layer: "mid", "out.3"."""
    return address.part if address.part == "mid" else f"{address.part}.{address.block}"
