"""What is checked before sampling, so that no pass is lost to a list of blocks that a later model lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from asag.blocks import BlocksError, parse_blocks, select
from asag.hosts.checkpoints import unet_addresses
from asag.hosts.refused import Refused
from asag.models.base import Family
from asag.perturb import choose_layers
from asag.settings import AsagSettings

SAME = (None, "", "Use same checkpoint")


def check_blocks(model: nn.Module, family: Family, p: Any, settings: AsagSettings) -> None:
    """Raise Refused when a model of the run lacks the blocks: the one that is loaded, and, as far as the header of its
    file tells, the one that the hires pass or a refiner brings."""
    hires = getattr(p, "enable_hr", False)
    other = hires and getattr(p, "hr_checkpoint_name", None) not in SAME
    for is_hires in (False, True) if hires and not other else (False,):
        scale, blocks = settings.in_pass(is_hires)
        try:
            if scale:
                choose_layers(model, family, blocks)
        except BlocksError as error:
            raise lacking(settings, is_hires, error) from None
    if other:
        _check_file(getattr(p, "hr_checkpoint_info", None), settings, True, "hires checkpoint")
    _check_file(getattr(p, "refiner_checkpoint_info", None), settings, False, "refiner")


def _check_file(info: Any, settings: AsagSettings, is_hires: bool, role: str) -> None:
    scale, blocks = settings.in_pass(is_hires)
    wanted = parse_blocks(blocks)
    # auto, late and all mean something in every model.
    if info is None or not scale or wanted.keyword:
        return
    addresses = unet_addresses(Path(info.filename))
    try:
        if addresses:
            select(wanted, [(address, None) for address in addresses], wanted)
    except BlocksError as error:
        raise lacking(settings, is_hires, f"the {role} lacks {error}") from None


def lacking(settings: AsagSettings, is_hires: bool, error: BlocksError | str) -> Refused:
    """What a request is refused with whose model lacks the blocks."""
    return Refused(f"ASAG settings: {blocks_field(settings, is_hires)}: {error}", 422)


def blocks_field(settings: AsagSettings, is_hires: bool) -> str:
    """The setting that a pass has its blocks from."""
    return "hires_blocks" if is_hires and settings.hires_blocks != "same" else "blocks"
