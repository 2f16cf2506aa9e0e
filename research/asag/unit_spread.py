"""What the units of the scale make of measured sizes: how far apart pushes are at one and the same scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from asag.units import UNITS, UnitScale
from research.lines import Line, markdown

# Unit cfg with the average of adaptive guidance, to compare with.
SLOW = "cfg-0.9"
_MOMENTUM = 0.9
Cell = tuple[float, str, str]  # CFG scale, method, block
# An FD that much above CFG's alone is where a scale counts as too much.
WORSE = 0.25


def relative(lines: Sequence[Line], unit: str) -> dict[Cell, Tensor]:
    """The push at scale 1 beside CFG's own, (steps, pictures), of each cell of lines of asag.units."""
    own = {line["guidance_scale"]: torch.tensor(line["sizes"]) for line in lines if line["method"] == "cfg"}
    return {
        (line["guidance_scale"], line["method"], line["block"]): _pushed(
            unit, torch.tensor(line["sizes"]), own[line["guidance_scale"]]
        )
        for line in lines
        if line["method"] != "cfg"
    }


def _pushed(unit: str, sizes: Tensor, own: Tensor) -> Tensor:
    """sizes and own, CFG's, (steps, pictures)."""
    if unit == SLOW:
        averages = [sizes[0] / own[0]]
        for now in (sizes / own)[1:]:
            averages.append(_MOMENTUM * averages[-1] + (1 - _MOMENTUM) * now)
        return sizes / own / torch.stack(averages)
    scale = UnitScale(unit)
    # A picture of one number has its size.
    factors = [scale(1.0, delta[:, None], cfg[:, None]) for delta, cfg in zip(sizes, own, strict=True)]
    return torch.stack([torch.as_tensor(each).flatten().expand(sizes.shape[1]) for each in factors]) * sizes / own


def spread(values: Tensor) -> tuple[float, float, float]:
    """The median, and the 90 % range as multiples of it."""
    median = values.median()
    low, high = torch.quantile(values.flatten(), torch.tensor([0.05, 0.95]))
    return float(median), float(low / median), float(high / median)


def summaries(lines: Sequence[Line]) -> list[Line]:
    """A line for each unit: how far pushes at one scale lie apart, in all that was measured and between its parts."""
    found = []
    for unit in (*UNITS, SLOW):
        cells = relative(lines, unit)
        median, low, high = spread(torch.cat([each.flatten() for each in cells.values()]))
        line = {name: lines[0][name] for name in ("plan", "model", "steps", "pictures")}
        line |= {"unit": unit, "method": "all", "median": median, "low": low, "high": high, "spread": high / low}
        line["blocks"] = _apart(cells, lambda cell: (cell[0], cell[1]))
        line["methods"] = _apart(cells, lambda cell: (cell[0], cell[2]))
        line["cfg_scales"] = _apart(cells, lambda cell: (cell[1], cell[2]))
        over_steps = [_quotient(each.median(dim=1).values.tolist()) for each in cells.values()]
        line["over_steps"] = float(torch.tensor(over_steps).median())
        found.append({name: float(f"{each:.4g}") if isinstance(each, float) else each for name, each in line.items()})
    return found


def _apart(cells: dict[Cell, Tensor], same: Callable[[Cell], tuple[object, ...]]) -> float:
    """The largest median over the smallest of cells that are otherwise the same; the median of that."""
    groups: dict[tuple[object, ...], list[float]] = {}
    for cell, values in cells.items():
        groups.setdefault(same(cell), []).append(float(values.median()))
    return float(torch.tensor([_quotient(each) for each in groups.values()]).median())


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _quotient(values: Sequence[float]) -> float:
    return max(values) / min(values)


def table(lines: Sequence[Line]) -> str:
    """A row for each unit."""
    head = ["unit", "90 % of pushes, the median being 1", "spread", "between blocks", "between methods"]
    head += ["between CFG scales", "over the steps"]
    rows = [
        [
            f"`{line['unit']}`" if line["unit"] in UNITS else "`cfg`, averaged as in adaptive guidance (0.9)",
            f"{line['low']:.2g} to {line['high']:.2g}",
            *(f"{line[name]:.3g}" for name in ("spread", "blocks", "methods", "cfg_scales", "over_steps")),
        ]
        for line in lines
        if "unit" in line and line["method"] == "all"
    ]
    return markdown(head, rows)


def too_much(swept: Sequence[Line]) -> dict[str, float]:
    """For each block the scale, in the paper's unit, at which FD is a quarter above CFG's alone: between the scales of
    a sweep over blocks with captions, along a straight line. Blocks that stay below it are left out."""
    lines = [line for line in swept if line["condition"] == "conditional"]
    alone = next(line["metrics"]["fd"]["value"] for line in lines if not line["settings"])
    found: dict[str, float] = {}
    points: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        if line["settings"]:
            at = points.setdefault(line["settings"]["blocks"], [(0.0, alone)])
            at.append((line["settings"]["scale"], line["metrics"]["fd"]["value"]))
    for block, at in points.items():
        scale = crossing(sorted(at), (1 + WORSE) * alone)
        if scale is not None:
            found[block] = scale
    return found


def crossing(at: Sequence[tuple[float, float]], limit: float) -> float | None:
    """The first scale at which FD comes up to `limit`, along straight lines between scales and FDs that are sorted by
    scale; None where it stays below."""
    for (scale, fd), (next_scale, next_fd) in pairwise(at):
        if fd < limit <= next_fd:
            return scale + (limit - fd) / (next_fd - fd) * (next_scale - scale)
    return None


def limits(swept: Sequence[Line], lines: Sequence[Line]) -> list[Line]:
    """A line for each unit: of each block the scale that is too much, what was found in the paper's unit being turned
    into the others by the median size of δ, and by its median size beside CFG's push. None without a sweep."""
    if not swept:
        return []
    cfg_scale = next(line["guidance_scale"] for line in swept if line["condition"] == "conditional")
    here = [line for line in lines if line.get("guidance_scale") == cfg_scale]
    own = next(torch.tensor(line["sizes"]) for line in here if line["method"] == "cfg")
    sizes = {line["block"]: torch.tensor(line["sizes"]) for line in here if line["method"] == "asag"}
    ways: dict[str, Callable[[Tensor], float]] = {
        "paper": lambda delta: 1.0,
        "push": lambda delta: float(delta.median()),
        "cfg": lambda delta: float((delta / own).median()),
    }
    found = []
    for unit, way in ways.items():
        scales = {block: float(f"{scale * way(sizes[block]):.3g}") for block, scale in too_much(swept).items()}
        ends = {"smallest": min(scales.values()), "largest": max(scales.values())}
        about = {"plan": "units", "model": lines[0]["model"], "unit": unit, "method": "limits"}
        found.append(about | {"scales": scales} | ends | {"apart": float(f"{ends['largest'] / ends['smallest']:.3g}")})
    return found


def limits_table(lines: Sequence[Line]) -> str:
    """A row for each block, and what lies between the largest scale and the smallest."""
    found = {line["unit"]: line for line in lines if line["method"] == "limits"}
    rows = [[block, *(f"{line['scales'][block]:.2g}" for line in found.values())] for block in found["paper"]["scales"]]
    rows.append(["largest : smallest", *(f"{line['apart']:.2g}" for line in found.values())])
    return markdown(["block", *(f"`{unit}`" for unit in found)], rows)
