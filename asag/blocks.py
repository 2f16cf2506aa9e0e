"""Block addresses: parse, print, match. A pure parser; knows no models.

    UNet  in.4   mid   out.3          DiT  joint.7   double.3   single.12   layer.5
    one layer inside a block:  out.3.0        ranges:  in.4-8, out.3.0-1        lists:  mid, out.3-5
    auto: the model family's default          late: later, which is cheaper          all: every self-attention layer
    some heads of a layer:  mid:h0-3, out.3.0:h2,5, mid:aligned (see heads.py)

Lists written for sd-perturbed-attention (guidance_utils.py: parse_unet_blocks) are read as it reads them. It numbers
only the blocks that attend, from 0 in each part of a UNet: d2 is in.4 in SD1.5 and in.7 in SDXL. Its ranges may repeat
the letter, as in d0-d3, and all that they name must exist.

    d2    m0    u3.1    d2.2-9    d0-3    d0-d3
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from asag.echo import shown
from asag.heads import BlocksError as BlocksError
from asag.heads import Heads, Span, joined, print_span, split_heads_off, split_items

PARTS = ("in", "mid", "out", "joint", "double", "single", "layer")
LETTERS = {"d": "in", "m": "mid", "u": "out"}
KEYWORDS = ("auto", "late", "all")
EXAMPLES = (
    "auto, late, all, mid, in.4, out.3.0, in.4-8, joint.7, double.3, single.10-19, layer.5, mid:h0-3, mid:aligned, "
    "or a list with commas"
)
LONGEST_TEXT = 2000

NUMBER = "[0-9]{1,4}"
SPAN = f"{NUMBER}(?:-{NUMBER})?"
LAYERS = rf"(?:\.(?P<layers>{SPAN}))?"
NUMBERED = re.compile(rf"(?P<part>in|out|joint|double|single|layer)\.(?P<blocks>{SPAN}){LAYERS}")
MIDDLE = re.compile(f"mid{LAYERS}")
COUNTED = re.compile(f"(?P<letter>[dmu])(?P<blocks>{NUMBER}(?:-(?P=letter)?{NUMBER})?){LAYERS}")


class Address(NamedTuple):
    """One self-attention layer: its part, the block's number (0 for the middle) and the layer's number inside it."""

    part: str
    block: int
    layer: int

    def __str__(self) -> str:
        return f"{block_name(self)}.{self.layer}"


@dataclass(frozen=True)
class Selector:
    """What one item of a list selects: a part, a range of blocks, a range of layers and of their heads (None: all).

    `counted`: the blocks' numbers count those of the part that attend, from 0, as sd-perturbed-attention does.
    """

    part: str
    blocks: Span = (0, 0)
    layers: Span | None = None
    counted: bool = False
    heads: Heads | None = None

    def __str__(self) -> str:
        if self.counted:
            blocks = _letter(self.part) + print_span(self.blocks)
        else:
            blocks = self.part + ("" if self.part == "mid" else "." + print_span(self.blocks))
        return blocks + ("" if self.layers is None else "." + print_span(self.layers)) + _print_heads(self.heads)

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
    """A parsed list. `keyword` is one of KEYWORDS or "" (then the selectors count), `heads` are those of a keyword."""

    selectors: tuple[Selector, ...] = ()
    keyword: str = ""
    heads: Heads | None = None

    def __str__(self) -> str:
        return self.keyword + _print_heads(self.heads) if self.keyword else ", ".join(map(str, self.selectors))


def parse_blocks(text: str) -> BlockList:
    """Read a list of addresses (see the module's text). Case and blanks don't matter.

    Raises:
        BlocksError: naming the item that can't be read and what is allowed.
    """
    if not isinstance(text, str) or len(text) > LONGEST_TEXT:
        raise BlocksError(f"{shown(text)}; allowed: text of at most {LONGEST_TEXT} characters: {EXAMPLES}")
    items = split_items(text.lower())
    if not items:
        raise BlocksError(f"{shown(text)}; allowed: {EXAMPLES}")
    word, heads = split_heads_off(items[0])
    if len(items) == 1 and word in KEYWORDS:
        return BlockList(keyword=word, heads=heads)
    return BlockList(tuple(map(_parse_selector, items)))


def _parse_selector(item: str) -> Selector:
    address, heads = split_heads_off(item)
    selector = replace(_read_selector(address), heads=heads)
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


def _print_heads(heads: Heads | None) -> str:
    return "" if heads is None else f":{heads}"


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


def select_heads(blocks: BlockList, inventory: Sequence[Address], default: BlockList) -> dict[Address, Heads]:
    """The heads that a list names of the layers that it selects; a layer of which all heads are selected isn't there.

    Raises:
        BlocksError: as `select` does, and where two items contradict each other.
    """
    if blocks.keyword:
        chosen = select(blocks, [(address, address) for address in inventory], default)
        return joined((address, blocks.heads) for address in chosen)
    return joined((address, each.heads) for each in blocks.selectors for address in each.find(inventory))


def late_blocks(addresses: Sequence[Address]) -> BlockList:
    """What "late" means, for addresses in the model's order: the first block of a UNet's decoder that attends, or the
    block two thirds through a transformer. Less of the model follows than after its middle, so guiding costs less."""
    blocks = distinct_blocks(addresses)
    decoder = [block for block in blocks if block[0] == "out"]
    part, number = decoder[0] if decoder else blocks[len(blocks) * 2 // 3]
    return BlockList((Selector(part, (number, number)),))


def middle_block(addresses: Sequence[Address]) -> BlockList:
    """The block in the middle of the depth of a transformer, all kinds of block counted alike."""
    blocks = distinct_blocks(addresses)
    part, number = blocks[len(blocks) // 2]
    return BlockList((Selector(part, (number, number)),))


def distinct_blocks(addresses: Iterable[Address]) -> list[tuple[str, int]]:
    """Part and number of each block, in order: a block may have several layers."""
    return list(dict.fromkeys((address.part, address.block) for address in addresses))


def summarize(addresses: Iterable[Address], heads: Heads | None = None) -> str:
    """Addresses in short, such as "in.1-2, in.4-5, mid, out.3-11"; each with these heads, if any are given."""
    runs: list[Selector] = []
    for address in addresses:
        last = runs[-1] if runs else None
        if last and last.part == address.part and last.blocks[1] + 1 >= address.block:
            runs[-1] = Selector(address.part, (last.blocks[0], address.block))
        else:
            runs.append(Selector(address.part, (address.block, address.block)))
    return ", ".join(str(replace(run, heads=heads)) for run in runs) or "no self-attention"


def _summarize_counted(addresses: Sequence[Address]) -> str:
    """A UNet's blocks as `counted` selectors number them: "d0-5, m0, u0-8, that is "; "" for a model without any."""
    counts = {part: sum(block[0] == part for block in distinct_blocks(addresses)) for part in LETTERS.values()}
    parts = [str(Selector(part, (0, count - 1), counted=True)) for part, count in counts.items() if count]
    return ", ".join(parts) + ", that is " if parts else ""


def _letter(part: str) -> str:
    return next(letter for letter, each in LETTERS.items() if each == part)


def write_list(
    inventory: Sequence[Address], chosen: Collection[Address], heads: Mapping[Address, Heads] | None = None
) -> str:
    """A list that selects exactly `chosen` of a model's layers: whole blocks in ranges, single layers where it must.

    `heads` has those of layers of which not all are selected.
    """
    marked = heads or {}
    blocks: dict[str, list[Address]] = {}
    for address in inventory:
        blocks.setdefault(block_name(address), []).append(address)
    items: list[str] = []
    whole: list[Address] = []

    def write_whole() -> None:
        if whole:
            items.append(summarize(whole, marked.get(whole[0])))
            whole.clear()

    for layers in blocks.values():
        taken = [address for address in layers if address in chosen]
        marks = {marked.get(address) for address in taken}
        if len(taken) == len(layers) and len(marks) == 1:
            if whole and marked.get(whole[0]) not in marks:
                write_whole()
            whole.append(taken[0])
            continue
        if taken:
            write_whole()
        items += [f"{address}{_print_heads(marked.get(address))}" for address in taken]
    write_whole()
    return ", ".join(items)


def block_name(address: Address) -> str:
    """The block's address without the layer: "mid", "out.3"."""
    return address.part if address.part == "mid" else f"{address.part}.{address.block}"
