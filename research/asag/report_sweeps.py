"""The report's parts on searches: blocks, the sweeps of settings, CFG scale and steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from research.asag import report_figures, tables
from research.asag.plans import STRONG_CFG, STRONG_SEARCHED
from research.asag.report_counts import missing, planned, sampled
from research.lines import Line, read_lines

_SEARCHED = (
    "Captions and noise are those of the searches alone. The best of so many settings is partly luck until it is "
    "measured again on fresh ones."
)
_SWEEPS = {
    "strength": ("Strength λ", "The factor on the paper's λ; 0 is the uniform map."),
    "iterations": ("Iterations", ""),
    "rescale": ("Rescale", "How far contrast is brought back to that of the unguided prediction."),
    "contrast": (
        "Contrast",
        "How much of what is mere contrast stays in the push, in each block. [..σ] is the paired difference to the "
        "whole push.",
    ),
    "rivals": (
        "ASAG and the others in each block, without contrast",
        "ASAG has its best scale in the block, the others push equally far. In the best block there are other "
        "strengths and more iterations as well. [..σ] is the paired difference to ASAG in the same block.",
    ),
    "plain-search": (
        "Captions without CFG, in each block",
        "All methods without contrast, PAG also with it, as in its paper. ASAG has its paper's strength "
        "and a lower one.",
    ),
    "strong-search": (
        f"With CFG {STRONG_CFG:g}, over scales",
        "Every method over the scales of equal push times "
        f"{', '.join(f'{times:g}' for times in STRONG_SEARCHED[:-1])} and {STRONG_SEARCHED[-1]:g}.",
    ),
    "every": (
        "Computed in every n-th step",
        "Two presets; the push is used again in the steps between. [..σ] is the paired difference to the same preset "
        "at 1.",
    ),
    "window": ("Window", "Fractions of the steps that are guided."),
    "adaptive": (
        "High scales, fixed, adaptive and without contrast",
        "Does `adaptive` keep ASAG from burning, or `contrast` 0? Their scales push equally far as the fixed one above "
        "them. [..σ] is the paired difference to that one.",
    ),
}


def searches(folder: Path, model: str) -> Iterator[str]:
    """What has been searched, each with its own captions and noise."""
    if lines := read_lines(folder / "results" / f"search-{model}.jsonl"):
        path = f"images/scales-{model}.png"
        report_figures.scales(lines, "Metrics over the guidance scale", folder / path)
        words = f"{sampled(lines)} The paper finds its best at 1.5.{missing(lines, planned(folder, 'search', model))}"
        yield f"## Guidance scale (the paper's Figure 6)\n\n{words}"
        yield f"![Metrics over scales]({path})"
    if lines := read_lines(folder / "results" / f"blocks-{model}.jsonl"):
        path = f"images/blocks-{model}.png"
        report_figures.blocks(lines, "ASAG in one block at a time", folder / path)
        words = f"{sampled(lines)} {_SEARCHED}{missing(lines, planned(folder, 'blocks', model))}"
        yield f"## Which block\n\n{words}\n\n![Blocks and scales]({path})"
    names = ("fd", "kid", "fd_layout", "fd_spectrum", "is_like", "right", "contrast", "clipped")
    for plan, (title, words) in _SWEEPS.items():
        lines = read_lines(folder / "results" / f"{plan}-{model}.jsonl")
        if lines:
            guided = [line for line in lines if line["settings"]]
            parts = [tables.sweep(lines, condition, names) for condition in tables.conditions_of(guided)]
            about = f"{words} {sampled(lines)} {_SEARCHED}{missing(lines, planned(folder, plan, model))}".strip()
            yield "\n\n".join([f"## {title}", about, *parts])
    if lines := read_lines(folder / "results" / f"steps-{model}.jsonl"):
        yield from steps_part(lines, planned(folder, "steps", model))


def steps_part(lines: list[Line], cells: int) -> Iterator[str]:
    chosen = next((line["settings"] for line in lines if line["protocol"] == "chosen"), None)
    words = f" *As chosen*: what did best without captions, {tables.in_words(chosen)}." if chosen else ""
    yield f"## CFG scale and number of steps\n\n{sampled(lines)} FD; objects right.{missing(lines, cells)}"
    yield f"ASAG at the paper's settings.{words} Differences are to the same CFG scale with as many steps."
    yield tables.steps_table(lines)
