"""Every method in every block at several CFG scales, and one scale of each unit for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from asag.units import UNITS
from research.asag.cells import METHODS
from research.asag.found_scales import three_digits
from research.asag.sweeps import BLOCKS
from research.lines import Line

CFG_SCALES = (1.5, 2.0, 4.0)
Place = tuple[float, str, str]  # CFG scale, block, method


def places(model: str) -> list[Place]:
    """In the order in which they are measured: each fifth of the list has every block at every CFG scale once, and all
    methods, so that a study that is stopped leaves out none of them."""
    return [
        (CFG_SCALES[(i + turn) % len(CFG_SCALES)], block, METHODS[(i + turn + fifth) % len(METHODS)])
        for fifth in range(len(METHODS))
        for turn in range(len(CFG_SCALES))
        for i, block in enumerate(BLOCKS[model])
    ]


def ones(lines: Sequence[Line]) -> dict[Place, dict[str, float]]:
    """By place the scale of each unit that pushes as far as CFG does, by the medians of sizes in the lines of
    `python -m research units`."""
    sizes = {
        (line["guidance_scale"], line["block"], line["method"]): torch.tensor(line["sizes"])
        for line in lines
        if "sizes" in line
    }
    found = {}
    for place, delta in sizes.items():
        if place[2] != "cfg":
            ratio = float((delta / sizes[place[0], "", "cfg"]).median())
            found[place] = {"paper": 1 / ratio, "push": float(delta.median()) / ratio, "cfg": 1.0}
    return found


def single(found: Iterable[Mapping[str, float]], push: float) -> dict[str, float]:
    """Of each unit the one scale that, by the median over places, pushes `push` times as far as CFG."""
    of = [*found]
    return {unit: three_digits(push * float(torch.tensor([each[unit] for each in of]).median())) for unit in UNITS}
