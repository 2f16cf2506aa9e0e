"""What is checked before sampling, so that no pass is lost to a list of blocks that a later model lacks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from asag.blocks import BlocksError, parse_blocks, select, select_heads
from asag.hosts.checkpoints import Unreadable, contents
from asag.hosts.refused import Refused
from asag.models.base import Family
from asag.models.tensor_names import Contents
from asag.perturb import choose_layers
from asag.settings import AsagSettings

SAME = (None, "", "Use same checkpoint")


def check_blocks(model: nn.Module, family: Family, p: Any, settings: AsagSettings, families: Sequence[Family]) -> None:
    """Raise Refused when a model of the run lacks the blocks or heads: the one that is loaded, and, as far as the
    header of its file tells, the one that the hires pass or a refiner brings. `families`: those the host can run."""
    for is_hires in passes(p):
        scale, blocks = settings.in_pass(is_hires)
        try:
            if scale:
                choose_layers(model, family, blocks)
        except BlocksError as error:
            raise lacking(settings, is_hires, error) from None
    if _other_in_hires(p):
        check_file(getattr(p, "hr_checkpoint_info", None), settings, True, "the hires checkpoint", families)
    check_file(getattr(p, "refiner_checkpoint_info", None), settings, False, "the refiner", families)


def passes(p: Any) -> tuple[bool, ...]:
    """The passes that the first model runs: False, and True for the hires pass if it runs that too."""
    return (False, True) if getattr(p, "enable_hr", False) and not _other_in_hires(p) else (False,)


def _other_in_hires(p: Any) -> bool:
    return bool(getattr(p, "enable_hr", False)) and getattr(p, "hr_checkpoint_name", None) not in SAME


def check_file(info: Any, settings: AsagSettings, is_hires: bool, role: str, families: Sequence[Family]) -> None:
    """Raise Refused when the model in a checkpoint's file lacks the blocks of a pass or the heads of one, or two items
    of the list contradict each other there. What the file doesn't tell, or isn't guided in this host, passes. `info` is
    the host's CheckpointInfo, or None: there is none."""
    scale, blocks = settings.in_pass(is_hires)
    if info is None or not scale:
        return
    try:
        found = contents(Path(info.filename))
    except Unreadable:
        return
    family, wanted = family_for(found, families), parse_blocks(blocks)
    if family is None:
        return
    default = family.default_blocks(found.addresses)
    said = f"{role} lacks "
    try:
        select(wanted, [(address, None) for address in found.addresses], default)
        said = f"{role}: "
        named = select_heads(wanted, found.addresses, default)
        said = f"{role} lacks "
        for address, heads in named.items():
            if address in found.heads:
                heads.check(address, found.heads[address])
    except BlocksError as error:
        raise lacking(settings, is_hires, f"{said}{error}") from None


def family_for(found: Contents, families: Sequence[Family]) -> Family | None:
    """The family that guides what a file holds; None when the host has none."""
    return next((family for family in families if found.kind in family.kinds), None)


def lacking(settings: AsagSettings, is_hires: bool, error: BlocksError | str) -> Refused:
    """What a request is refused with whose model lacks the blocks."""
    return Refused(f"ASAG settings: {blocks_field(settings, is_hires)}: {error}", 422)


def blocks_field(settings: AsagSettings, is_hires: bool) -> str:
    """The setting that a pass has its blocks from."""
    return "hires_blocks" if is_hires and settings.hires_blocks != "same" else "blocks"
