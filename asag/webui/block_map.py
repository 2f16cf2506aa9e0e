"""What the route /asag/blocks tells: a model's blocks, and which of them a list selects. The block map draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from asag.echo import shown_names
from asag.heads import Heads, joined, split_heads_off
from asag.models.base import Family
from asag.webui import map_heads


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


def inventory(
    family: Family,
    addresses: Sequence[Address],
    blocks: str = "auto",
    toggle: str = "",
    counts: Mapping[Address, int] | None = None,
) -> dict[str, Any]:
    """The self-attention blocks of a model with these layers, and what the list `blocks` selects of them.

    `toggle` is a block that changes sides, such as "mid", or heads of one, "mid:h3" or "mid:aligned"; `counts` says how
    many heads a layer has, where that is known.

    Returns a JSON object: `family`, `experimental`; `auto` and `late`, what these words mean here, and `auto_reason`;
    `blocks`, for each its `address`, how many `layers` it has, how many of them are `chosen`, which `heads` of them
    such as h0-3, aligned or some, null for all, and `each_head`, whether each is chosen ("true", "false", or "mixed":
    in some layers), null when their number isn't known; `unknown`, what the list names and the model lacks; `problem`,
    why the list can't be used, or null; `counted`, what its items in the spelling d4, m0, u3.1 are here, by item;
    `text`, the list after `toggle`; and `note`, why that changed nothing, or null.
    A block takes the place of `auto`, which nobody chose; heads are those of a block as `auto` has it.
    """
    auto = family.default_blocks(addresses)
    reading, text, note = read(blocks, addresses, auto), blocks, None
    by_block = {name: [each for each in addresses if block_name(each) == name] for name in map(block_name, addresses)}
    if toggle:
        try:
            text = _after(toggle, blocks, reading, by_block, counts or {})
        except BlocksError as error:
            note = str(error)
        reading = read(text, addresses, auto)
    return {
        "family": family.name,
        "experimental": family.experimental,
        "auto": str(auto),
        "auto_reason": family.reason,
        "late": str(late_blocks(addresses)),
        "blocks": [_told(name, layers, reading, counts or {}) for name, layers in by_block.items()],
        "text": text,
        "unknown": reading.unknown,
        "problem": reading.problem,
        "counted": reading.counted,
        "note": note,
    }


def _told(name: str, layers: Sequence[Address], reading: Reading, counts: Mapping[Address, int]) -> dict[str, Any]:
    count = map_heads.count_of(layers, counts)
    return {
        "address": name,
        "layers": len(layers),
        "chosen": sum(layer in reading.chosen for layer in layers),
        "heads": reading.heads_of(name),
        "each_head": count and map_heads.states(layers, reading.chosen, reading.heads, count),
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


def _after(
    toggle: str,
    blocks: str,
    reading: Reading,
    by_block: Mapping[str, Sequence[Address]],
    counts: Mapping[Address, int],
) -> str:
    """The list after a click on a block or on heads of one; raises BlocksError, saying why it stays as it is."""
    block, named = split_heads_off(toggle)
    layers = by_block.get(block)
    if layers is None:
        raise BlocksError(f"This model has no {shown_names([block])}.")
    is_auto = blocks.strip().lower() == "auto"
    # None: all heads of the layer.
    chosen = {each: reading.heads.get(each) for each in reading.chosen}
    others = {each: heads for each, heads in chosen.items() if each not in layers and not is_auto}
    if named is None:
        is_whole = all(each in chosen and chosen[each] is None for each in layers)
        after = {} if is_whole and not is_auto else dict.fromkeys(layers)
    else:
        count = map_heads.count_of(layers, counts)
        if count is None:
            raise BlocksError(f"ASAG knows the heads of {block} once the model is loaded. Generate a picture first.")
        after = map_heads.toggled(layers, reading.chosen, reading.heads, named, count)
    if not others and not after:
        if named is None:
            raise BlocksError(f"Only {block} is weakened. Choose another block first, or switch ASAG off.")
        raise BlocksError(f"Only {toggle} is weakened. Choose another head or block first, or switch ASAG off.")
    every = [address for each in by_block.values() for address in each]
    everything = {**others, **after}
    return write_list(every, everything, {each: heads for each, heads in everything.items() if heads})
