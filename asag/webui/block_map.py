"""What the route /asag/blocks tells: a model's blocks, and which of them a list selects. The block map draws it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from asag.blocks import (
    Address,
    BlockList,
    BlocksError,
    block_name,
    late_blocks,
    parse_blocks,
    select,
    write_list,
)
from asag.heads import Heads, joined
from asag.models.base import Family


@dataclass
class Reading:
    """What a list says of a model: the layers that it selects, the items that the model lacks, why it can't be used
    (or None), what its counted items, such as d4, are called here, and the heads of layers that aren't chosen whole."""

    chosen: list[Address] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    problem: str | None = None
    counted: dict[str, str] = field(default_factory=dict)
    heads: dict[Address, Heads] = field(default_factory=dict)

    def heads_of(self, block: str) -> str | None:
        """Which heads of a block's layers are chosen, in words; None when all are."""
        named = {str(self.heads.get(each, "")) for each in self.chosen if block_name(each) == block}
        return "some" if len(named) > 1 else "".join(named) or None


def inventory(family: Family, addresses: Sequence[Address], blocks: str = "auto", toggle: str = "") -> dict[str, Any]:
    """The self-attention blocks of a model with these layers, and what the list `blocks` selects of them.

    Returns a JSON object: `family`, `experimental`; `auto` and `late`, what these words mean here, and `auto_reason`;
    `blocks`, for each its `address`, how many `layers` it has, how many of them are `chosen`, and which `heads` of them
    such as h0-3, aligned or some, null for all; `unknown`, what the list names and the model lacks; `problem`, why the
    list can't be used, or null; `counted`, what its items in the spelling d4, m0, u3.1 are here, by item; `text`, the
    list, in which the block `toggle` has changed sides if one is given; and `note`, why that block has not, or null.
    A block takes the place of `auto`, which nobody chose.
    """
    auto = family.default_blocks(addresses)
    reading, text, note = read(blocks, addresses, auto), blocks, None
    if toggle:
        before = [] if blocks.strip().lower() == "auto" else reading.chosen
        changed = toggled(before, addresses, toggle, reading.heads)
        note = _why_not(changed, addresses, toggle)
        if note is None:
            others = {address: heads for address, heads in reading.heads.items() if block_name(address) != toggle}
            text = write_list(addresses, changed, others)
            reading = read(text, addresses, auto)
    names = list(dict.fromkeys(map(block_name, addresses)))
    return {
        "family": family.name,
        "experimental": family.experimental,
        "auto": str(auto),
        "auto_reason": family.reason,
        "late": str(late_blocks(addresses)),
        "blocks": [
            {
                "address": name,
                "layers": sum(block_name(address) == name for address in addresses),
                "chosen": sum(block_name(address) == name for address in reading.chosen),
                "heads": reading.heads_of(name),
            }
            for name in names
        ],
        "text": text,
        "unknown": reading.unknown,
        "problem": reading.problem,
        "counted": reading.counted,
        "note": note,
    }


def read(text: str, addresses: Sequence[Address], auto: BlockList) -> Reading:
    """What a list says of a model with these addresses, item by item."""
    pairs = [(address, address) for address in addresses]
    try:
        wanted = parse_blocks(text)
    except BlocksError as error:
        return Reading(problem=str(error))
    reading, chosen, named = Reading(), set(), []
    for part in [wanted] if wanted.keyword else [BlockList((selector,)) for selector in wanted.selectors]:
        try:
            found = select(part, pairs, auto)
        except BlocksError as error:
            reading.unknown.append(str(part))
            reading.problem = reading.problem or str(error)
            continue
        chosen.update(found)
        named += [(address, part.selectors[0].heads if part.selectors else part.heads) for address in found]
        if any(selector.counted for selector in part.selectors):
            reading.counted[str(part)] = write_list(addresses, found)
    reading.chosen = [address for address in addresses if address in chosen]
    try:
        reading.heads = joined(named)
    except BlocksError as error:
        reading.problem = reading.problem or str(error)
    return reading


def toggled(
    chosen: Sequence[Address], addresses: Sequence[Address], block: str, partly: Collection[Address] = ()
) -> list[Address]:
    """The chosen layers with a whole block added, or taken away if all of it was chosen; of those in `partly` only some
    heads were."""
    layers = [address for address in addresses if block_name(address) == block]
    if all(address in chosen and address not in partly for address in layers):
        return [address for address in chosen if address not in layers]
    return [address for address in addresses if address in chosen or address in layers]


def _why_not(changed: Sequence[Address], addresses: Sequence[Address], block: str) -> str | None:
    """Why a click on a block leaves the list as it is; None when it doesn't."""
    if block not in map(block_name, addresses):
        return f"This model has no {block}."
    if not changed:
        return f"{block} is the only block that is weakened: choose another one first, or switch ASAG off."
    return None
