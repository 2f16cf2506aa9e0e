"""The report's part on the units of the scale: how far they push, what is too much, and which scale suits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from research.asag import tables, unit_best, unit_spread
from research.asag.unit_single import STEPS
from research.lines import read_lines

_OF_PRESETS = ("fd", "kid", "fd_layout", "right", "contrast", "clipped")


def units(folder: Path, model: str) -> Iterator[str]:
    lines = read_lines(folder / "results" / f"units-{model}.jsonl")
    if not lines:
        return
    yield (
        "## The units of the scale\n\nThe push beside CFG's own, at one and the same scale: every method in every "
        f"block at CFG 1.5, 2 and 4, in every step, {lines[0]['pictures']} pictures with captions. The latents are "
        "those of CFG alone. *Spread* is the upper end of the 90 % range over the lower. The other columns are the "
        "largest push over the smallest between what they name, the rest being equal (medians).\n\n"
        + unit_spread.table(lines)
    )
    if any(line["method"] == "limits" for line in lines):
        yield (
            "The scale at which FD is a quarter above that of CFG 2 alone, ASAG in one block (500 pictures, of the "
            "search over blocks, straight lines between its scales). It was measured in the unit `paper`. The other "
            "columns are what that scale is in the other units: multiplied by the median size of δ, and by its median "
            "size beside CFG's push. Blocks in which FD stays below that up to scale 1.5 are left out.\n\n"
            + unit_spread.limits_table(lines)
        )
    yield from best(folder, model)


def best(folder: Path, model: str) -> Iterator[str]:
    """Which scale suits, from the searches, and what one scale does everywhere."""
    lines = read_lines(folder / "results" / "unit-best.jsonl")
    here = [line for line in lines if line["model"] in (model, "both")]
    if searched := [line for line in here if line["method"] == "best"]:
        yield (
            "**Which scale suits.** A *place* is a CFG scale, a block and a method: here those of the searches with "
            "CFG (500 pictures at each scale, of one seed), in this model and in both. FD counts in per cent of CFG "
            "alone's. The scales were run in the unit `paper`. In the other units they are multiplied by the median "
            "size of δ, and by its median size beside CFG's push. The best scale is the lowest point of a parabola. "
            "*Clearly* better is better by 2 paired standard errors. Places where no scale is better have no best "
            "scale. Too much is a quarter above CFG alone. Ranges are of 90 % of the places; a *spread* is the upper "
            "end over the lower, with its own 90 % range over resampled places. The *one scale* for all places has the "
            "lowest mean FD; it is 0 where no scale is better than CFG alone.\n\n" + unit_best.table(searched)
        )
    sampled = [line for line in here if line["method"] == "single"]
    pooled = [line for line in read_lines(folder / "results" / f"unit-single-{model}.jsonl") if "metrics" in line]
    if sampled and pooled:
        pushes = " or ".join(f"{push:g}" for push in sorted({line["push"] for line in sampled}))
        yield (
            "**One scale everywhere**, sampled in each unit: every block with every method at CFG 1.5, 2 and 4, "
            f"{pooled[0]['samples'] // pooled[0]['places']} pictures a place with captions and noise of its own, "
            f"{STEPS} steps. In each unit it is one scale for both models: that which pushes {pushes} times as far as "
            "CFG, by the median over places. The change is the RMS difference of the mean colours of 4 × 4 cells to "
            "the pictures of CFG alone, the median of a place. Its spread at one CFG scale is the median of three. FD, "
            "KID, right and clipped are those of all pictures of this model together, with the paired differences to "
            "CFG alone.\n\n" + unit_best.sampled_table(sampled, pooled)
        )
    if lines := read_lines(folder / "results" / f"presets-{model}.jsonl"):
        yield (
            f"**Two presets**, and what they could be in unit `cfg`: {lines[0]['samples']} pictures with captions and "
            f"CFG 2, {lines[0]['steps']} steps, on captions and noise that nothing was chosen by. [..σ] is the paired "
            "difference to the preset in the paper's unit.\n\n" + tables.sweep(lines, "conditional", _OF_PRESETS)
        )
