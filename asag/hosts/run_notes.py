"""The notes for the user on a guided run that is over."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from asag.blocks import Address
from asag.heads import Heads
from asag.models.base import Family
from asag.units import WITHOUT_CFG

if TYPE_CHECKING:
    from asag.hosts.generation import GuidedRun

# A note lists the heads of so many layers.
MOST_LAYERS = 12
# What extension made a step without what ASAG weakens: Neo's Spectrum forecasts steps, caches skip blocks.
WITHOUT_MODEL = "that {} made without running the model"
WITHOUT_BLOCKS = "that {} made without the weakened blocks, as caches do"
OTHER_ROWS = (
    "ASAG may have guided this image wrongly: the WebUI gave the model other inputs than in the steps before; turn off "
    "Share work"
)


def notes_on(run: GuidedRun, family: Family) -> list[str]:
    """The messages about a run of a model of that family, in full sentences; none when all went as asked."""
    messages = list(run.notes)
    if family.experimental:
        messages.append(f"ASAG is experimental in {family.name}: checked with random weights, not on real pictures")
    aligned = run.heads.told(aligned=True)
    if aligned:
        messages.append(f"ASAG weakened the heads whose queries and keys agree most: {_as_list(aligned)}")
    extra_passes = run.reuse.comment(run.reused_calls)
    if extra_passes:
        messages.append(extra_passes)
    messages += [f"ASAG left out {steps} steps {why}" for why, steps in run.left_out.items()]
    if run.reuse.differed is not None and bool(run.reuse.differed):
        messages.append(OTHER_ROWS)
    stopped = how_it_was_stopped()
    if run.missed_calls:
        messages.append(
            f"ASAG guided {run.guided_calls} steps and left out others: it can't guide them with this sampler (such "
            "as reForge's CFG++ samplers); choose another sampler"
        )
    elif stopped:
        messages.append(f"ASAG guided {run.guided_calls} of {run.announced} steps: the image was {stopped}")
    elif not run.guided_calls and not run.conflict:
        messages.append(
            "ASAG guided no step of this image: no step lies between start and end, or the setting Hires fix is hires "
            "and there was no hires pass; change these settings"
        )
    without_cfg = run.scaling.unit.without_cfg
    if without_cfg:
        messages.append(
            f"ASAG used unit push at {WITHOUT_CFG:g} times the scale in {without_cfg} of {run.guided_calls} guided "
            "steps: unit cfg needs CFG, and they had none (CFG scale 1, a distilled model, or CFG left out)"
        )
    if run.operator.changes_nothing:
        messages.append(
            "ASAG changed nothing: the image is so small that the weakened blocks see it as one token; choose other "
            "blocks, such as all"
        )
    elif run.scaling.largest is not None and not bool(run.scaling.largest):
        messages.append(
            "ASAG changed nothing: the weakened attention gave the same as the ordinary attention; choose other blocks "
            "or another method"
        )
    elif run.scaling.unit.only_faint is not None and bool(run.scaling.unit.only_faint):
        messages.append(
            "ASAG changed almost nothing: in unit cfg ASAG follows CFG, and CFG changed almost nothing (are both "
            "prompts the same?)"
        )
    return messages


def _as_list(heads: dict[Address, list[tuple[int, ...]]]) -> str:
    """Heads by layer as a list of blocks, cut where it gets long; with "or" where pictures differ."""
    items = [f"{address}:{' or '.join(map(_written, chosen))}" for address, chosen in heads.items()]
    rest = len(items) - MOST_LAYERS
    return ", ".join(items[:MOST_LAYERS]) + (f" and those of {rest} more layers" if rest > 0 else "")


def _written(numbers: tuple[int, ...]) -> str:
    return str(Heads(tuple((number, number) for number in numbers)))


def how_it_was_stopped() -> str:
    """What the user did to the batch that was sampled last, or nothing (modules/shared_state.py: State)."""
    state = getattr(sys.modules.get("modules.shared"), "state", None)
    if getattr(state, "interrupted", False):
        return "interrupted"
    return "skipped" if getattr(state, "skipped", False) else ""
