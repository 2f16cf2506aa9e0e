"""Block addresses: parse, print, match. A pure parser; knows no models.

    UNet  in.4   mid   out.3          DiT  joint.7   double.3   single.12   layer.5
    one layer inside a block:  out.3.0        ranges:  in.4-8, out.3.0-1        lists:  mid, out.3-5
    auto: the model family's default          late: later, which is cheaper          all: every self-attention layer

Lists written for sd-perturbed-attention (guidance_utils.py: parse_unet_blocks) are read as it reads them. It numbers
only the blocks that attend, from 0 in each part of a UNet: d2 is in.4 in SD1.5 and in.7 in SDXL. Its ranges may repeat
the letter, as in d0-d3, and all that they name must exist.

    d2    m0    u3.1    d2.2-9    d0-3    d0-d3
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from asag.echo import shown

PARTS = ("in", "mid", "out", "joint", "double", "single", "layer")
LETTERS = {"d": "in", "m": "mid", "u": "out"}
KEYWORDS = ("auto", "late", "all")
EXAMPLES = (
    "auto, late, all, mid, in.4, out.3.0, in.4-8, joint.7, double.3, single.10-19, layer.5, or a list with commas"
)
LONGEST_TEXT = 2000

NUMBER = "[0-9]{1,4}"
SPAN = f"{NUMBER}(?:-{NUMBER})?"
LAYERS = rf"(?:\.(?P<layers>{SPAN}))?"
NUMBERED = re.compile(rf"(?P<part>in|out|joint|double|single|layer)\.(?P<blocks>{SPAN}){LAYERS}")
MIDDLE = re.compile(f"mid{LAYERS}")
COUNTED = re.compile(f"(?P<letter>[dmu])(?P<blocks>{NUMBER}(?:-(?P=letter)?{NUMBER})?){LAYERS}")


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
    """What one item of a list selects: a part, a range of blocks and a range of layers (None: all of them).

    `counted`: the blocks' numbers count those of the part that attend, from 0, as sd-perturbed-attention does.
    """

    part: str
    blocks: Span = (0, 0)
    layers: Span | None = None
    counted: bool = False

    def __str__(self) -> str:
        if self.counted:
            blocks = _letter(self.part) + _print_span(self.blocks)
        else:
            blocks = self.part + ("" if self.part == "mid" else "." + _print_span(self.blocks))
        return blocks + ("" if self.layers is None else "." + _print_span(self.layers))

    def find(self, addresses: Sequence[Address]) -> list[Address]:
        """The addresses that it selects of a model's, in the model's order.

        Raises:
            BlocksError: when it selects none, or counts beyond what the model has; naming what it has.
        """
        return self._find_counted(addresses) if self.counted else self._find(addresses)

    def _find(self, addresses: Sequence[Address]) -> list[Address]:
        found = [
            address
            for address in addresses
            if address.part == self.part
            and self.blocks[0] <= address.block <= self.blocks[1]
            and (self.layers is None or self.layers[0] <= address.layer <= self.layers[1])
        ]
        if not found:
            raise BlocksError(f"'{self}'; this model has: {summarize(addresses)}")
        return found

    def _find_counted(self, addresses: Sequence[Address]) -> list[Address]:
        blocks = [block for block in distinct_blocks(addresses) if block[0] == self.part]
        if self.blocks[1] >= len(blocks):
            raise BlocksError(f"'{self}'; this model has: {_summarize_counted(addresses)}{summarize(addresses)}")
        found: list[Address] = []
        for block in blocks[self.blocks[0] : self.blocks[1] + 1]:
            layers = [address for address in addresses if (address.part, address.block) == block]
            first, last = self.layers or (0, len(layers) - 1)
            if last >= len(layers):
                raise BlocksError(f"'{self}'; {block_name(layers[0])} has: layers 0 to {len(layers) - 1}")
            found += layers[first : last + 1]
        return found


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
    selector = _read_selector(item)
    for span in (selector.blocks, selector.layers):
        if span and span[0] > span[1]:
            raise BlocksError(f"{shown(item)}; allowed: ranges that rise, such as {span[1]}-{span[0]}")
    return selector


def _read_selector(item: str) -> Selector:
    numbered = NUMBERED.fullmatch(item)
    if numbered:
        return Selector(numbered["part"], _span(numbered["blocks"]), _layers(numbered))
    middle = MIDDLE.fullmatch(item)
    if middle:
        return Selector("mid", layers=_layers(middle))
    compact = "".join(item.split())
    counted = COUNTED.fullmatch("m0" if compact == "m" else compact)
    if not counted:
        raise BlocksError(f"{shown(item)}; allowed: {EXAMPLES}")
    letter, blocks = counted["letter"], _span(counted["blocks"].replace(f"-{counted['letter']}", "-"))
    if letter == "m" and blocks != (0, 0):
        raise BlocksError(f"{shown(item)}; allowed: m0, since there is one middle block")
    return Selector(LETTERS[letter], blocks, _layers(counted), counted=True)


def _layers(match: re.Match[str]) -> Span | None:
    return None if match["layers"] is None else _span(match["layers"])


def _span(text: str) -> Span:
    first, _, last = text.partition("-")
    return int(first), int(last or first)


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
    addresses = [address for address, _ in inventory]
    wanted = {address for selector in chosen.selectors for address in selector.find(addresses)}
    return [layer for address, layer in inventory if address in wanted]


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


def _summarize_counted(addresses: Sequence[Address]) -> str:
    """A UNet's blocks as `counted` selectors number them: "d0-5, m0, u0-8, that is "; "" for a model without any."""
    counts = {part: sum(block[0] == part for block in distinct_blocks(addresses)) for part in LETTERS.values()}
    parts = [str(Selector(part, (0, count - 1), counted=True)) for part, count in counts.items() if count]
    return ", ".join(parts) + ", that is " if parts else ""


def _letter(part: str) -> str:
    return next(letter for letter, each in LETTERS.items() if each == part)


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
