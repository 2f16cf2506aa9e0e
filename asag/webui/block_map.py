"""What the route /asag/blocks tells: a model's blocks, and which of them a list selects. The block map draws it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from asag.blocks import Address, BlockList, BlocksError, block_name, late_blocks, parse_blocks, select, write_list
from asag.models.base import Family


def inventory(model: nn.Module, family: Family, blocks: str = "auto", toggle: str = "") -> dict[str, Any]:
    """The self-attention blocks of a model, and what the list `blocks` selects of them.

    Returns a JSON object: `family`, `experimental`; `auto` and `late`, what these words mean here, and `auto_reason`;
    `blocks`, for each its `address`, how many `layers` it has and how many of them are `chosen`; `unknown`, what the
    list names and the model lacks; `problem`, why the list can't be used, or null; and `text`, the list, in which the
    block `toggle` has changed sides if one is given.
    """
    addresses = [layer.address for layer in family.layers(model)]
    auto = family.default_blocks(model)
    chosen, unknown, problem = read(blocks, addresses, auto)
    text = blocks
    if toggle:
        changed = toggled(chosen, addresses, toggle)
        if changed:
            text = write_list(addresses, changed)
            chosen, unknown, problem = read(text, addresses, auto)
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
                "chosen": sum(block_name(address) == name for address in chosen),
            }
            for name in names
        ],
        "text": text,
        "unknown": unknown,
        "problem": problem,
    }


def read(text: str, addresses: Sequence[Address], auto: BlockList) -> tuple[list[Address], list[str], str | None]:
    """The layers that a list selects, the items of it that the model lacks, and why it can't be used, or None."""
    pairs = [(address, address) for address in addresses]
    try:
        wanted = parse_blocks(text)
    except BlocksError as error:
        return [], [], str(error)
    chosen: list[Address] = []
    unknown, problem = [], None
    for part in [wanted] if wanted.keyword else [BlockList((selector,)) for selector in wanted.selectors]:
        try:
            chosen += select(part, pairs, auto)
        except BlocksError as error:
            unknown.append(str(part))
            problem = problem or str(error)
    return [address for address in addresses if address in chosen], unknown, problem


def toggled(chosen: Sequence[Address], addresses: Sequence[Address], block: str) -> list[Address]:
    """The chosen layers with a whole block added, or taken away if all of it was chosen."""
    layers = [address for address in addresses if block_name(address) == block]
    if all(address in chosen for address in layers):
        return [address for address in chosen if address not in layers]
    return [address for address in addresses if address in chosen or address in layers]
