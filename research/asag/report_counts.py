"""How many pictures and rows the report's tables have, and lack, in words."""

from __future__ import annotations

from pathlib import Path

from research.asag.cells import MAIN_CAPTIONS, MAIN_SEEDS
from research.asag.found_scales import Scales
from research.asag.plans import PLANS
from research.lines import Line

PLANNED = MAIN_CAPTIONS * len(MAIN_SEEDS)


def sampled(lines: list[Line]) -> str:
    """How many pictures a cell has, in words."""
    found: dict[int, list[int]] = {}
    for samples, seeds in sorted({(line["samples"], len(line["seeds"])) for line in lines}):
        found.setdefault(seeds, []).append(samples)
    counts = [(" or ".join(map(str, numbers)), seeds) for seeds, numbers in found.items()]
    return " ".join(f"{numbers} pictures a cell, of {seeds} seed{'s'[: seeds > 1]}." for numbers, seeds in counts)


def planned(folder: Path, plan: str, model: str) -> int:
    """How many cells a plan has, with the scales that have been found so far."""
    return len(PLANS[plan](model, Scales(folder / "results" / "scales.json")).cells)


def missing(lines: list[Line], cells: int) -> str:
    """Says that not all cells of a plan have been measured, where it is so."""
    return f" **Incomplete**: {cells - len(lines)} of {cells} rows are missing." if len(lines) < cells else ""


def preliminary(lines: list[Line]) -> str:
    """Says that cells have fewer pictures than planned, where it is so."""
    fewer = sum(line["samples"] < PLANNED for line in lines)
    if not fewer:
        return ""
    some = " FD falls with the number of pictures: rows compare by their errors alone where that differs."
    return f" **Preliminary**: {PLANNED} a cell are planned.{some if fewer < len(lines) else ''}"
