"""Which scale suits best in each unit, and what one scale for all places costs: `python -m research best`.

From measured lines alone: FDs of the searches in the paper's unit, turned into the other units by the sizes of δ, and
pictures that `python -m research single` sampled in each unit. A place is a CFG scale, a block and a method. FD counts
in per cent of what CFG alone has in the same model at the same CFG scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from asag.lab.arguments import MODELS
from asag.units import UNITS
from research import arguments
from research.asag.unit_places import ones
from research.asag.unit_spread import WORSE, crossing, rounded
from research.lines import Line, markdown, read_lines, write_lines

Place = tuple[str, float, str, str]  # model, CFG scale, block, method
# Searches over scales that have CFG. What "auto" is in each model.
SEARCHES, AUTO = ("search", "strong-search", "blocks"), {"unet": "mid", "mmdit": "joint.3"}
CLEAR = 2.0  # paired standard errors
_RESAMPLED, _GRID = 1000, 400


class Point(NamedTuple):
    """A measured scale; FD in per cent of CFG alone's, and how far it is below that, in paired standard errors."""

    scale: float
    fd: float
    below: float


Curves = dict[Place, list[Point]]


def curves(model: str, searched: Sequence[Line], sizes: Sequence[Line]) -> dict[str, Curves]:
    """By unit and place what was searched, by growing scale. `searched` has lines in the paper's unit, `sizes` those of
    `python -m research units`."""
    found: dict[str, Curves] = {unit: {} for unit in UNITS}
    to = ones(sizes)
    for line in searched:
        settings, fd = line["settings"], line["metrics"]["fd"]
        if not settings or line["condition"] != "conditional":
            continue
        change, error = fd["to_baseline"], fd["to_baseline_error"]
        measured = (100 * fd["value"] / (fd["value"] - change), -change / error)
        at = (line["guidance_scale"], settings.get("blocks", AUTO[model]), line["method"])
        for unit, of in found.items():
            scale = settings["scale"] * to[at][unit] / to[at]["paper"]
            points = of.setdefault((model, *at), [])
            # Two searches may have the same scale in a place.
            if not any(math.isclose(scale, each.scale) for each in points):
                points.append(Point(scale, *measured))
    return {unit: {place: sorted(points) for place, points in of.items()} for unit, of in found.items()}


def best(points: Sequence[Point]) -> float | None:
    """The scale with the lowest FD, by a parabola over the logarithm of the scale where it lies between two others;
    None where CFG alone is better than each."""
    i = min(range(len(points)), key=lambda each: points[each].fd)
    if points[i].fd >= 100:
        return None
    if i in (0, len(points) - 1):
        return points[i].scale
    (left, before, _), (here, lowest, _), (right, after, _) = points[i - 1 : i + 2]
    a, b, c = math.log(left), math.log(here), math.log(right)
    up, down = (b - a) ** 2 * (lowest - after), (b - c) ** 2 * (lowest - before)
    below = (b - a) * (lowest - after) - (b - c) * (lowest - before)
    return math.exp(b - (up - down) / (2 * below)) if below else here


def at(points: Sequence[Point], scale: float) -> float:
    """FD at a scale, along straight lines from CFG alone on; beyond the largest scale what that has, or more."""
    for (low, fd), (high, next_fd) in pairwise([(0.0, 100.0), *((each.scale, each.fd) for each in points)]):
        if scale <= high:
            return fd + (scale - low) / (high - low) * (next_fd - fd)
    return points[-1].fd


def single(of: Curves) -> tuple[float, list[float]]:
    """The one scale for all places with the lowest mean FD, 0 if none is below CFG alone, and each place's FD at it."""
    ends = [each.scale for points in of.values() for each in points]
    tried = [0.0, *torch.logspace(math.log10(min(ends)), math.log10(max(ends)), _GRID).tolist()]
    found = [[at(points, scale) for points in of.values()] for scale in tried]
    i = min(range(len(tried)), key=lambda each: sum(found[each]))
    return tried[i], found[i]


def apart(scales: Sequence[float]) -> dict[str, float]:
    """The median of scales, the ends of their 90 % range, and the upper over the lower. How far that one may be off is
    its own 90 % range over resampled places."""
    logs = torch.tensor(scales).log()
    ends = torch.tensor([0.05, 0.95])
    low, median, high = torch.quantile(logs, torch.tensor([0.05, 0.5, 0.95])).exp().tolist()
    drawn = torch.randint(len(logs), (_RESAMPLED, len(logs)), generator=torch.Generator().manual_seed(1))
    lows, highs = torch.quantile(logs[drawn], ends, dim=1)
    least, most = torch.quantile((highs - lows).exp(), ends).tolist()
    found = {"median": median, "low": low, "high": high, "spread": high / low}
    return {**found, "spread_least": least, "spread_most": most}


def summary(unit: str, of: Curves) -> Line:
    """What the places make of one unit."""
    chosen = {place: scale for place, points in of.items() if (scale := best(points)) is not None}
    clear = [place for place, points in of.items() if any(each.below >= CLEAR for each in points)]
    limits = [crossing([(0.0, 100.0), *((p.scale, p.fd) for p in points)], 100 * (1 + WORSE)) for points in of.values()]
    much = [scale for scale in limits if scale is not None]
    own = [min(100.0, *(each.fd for each in points)) for points in of.values()]
    scale, fds = single(of)
    line: Line = {"unit": unit, "method": "best", "places": len(of), "better": len(chosen), "clear": len(clear)}
    line |= {"best": _apart([*chosen.values()]), "best_clear": _apart([chosen[place] for place in clear])}
    line |= {"limits": len(much), "too_much": _apart(much), "single": scale, "fd": _mean(fds), "worst": max(fds)}
    return line | {"own": _mean(own), "loss": _mean(fds) - _mean(own), "at_end": _at_end(of)}


def _apart(scales: Sequence[float]) -> dict[str, float] | None:
    return apart(scales) if scales else None


def _at_end(of: Curves) -> int:
    """Of how many places the best scale is the largest that was measured."""
    return sum(min(points, key=lambda each: each.fd) == points[-1] and points[-1].fd < 100 for points in of.values())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def summaries(measured: Mapping[str, dict[str, Curves]]) -> list[Line]:
    """A line for each unit, of each model that was searched and of both."""
    groups = {**measured, "both": {unit: _joined(measured, unit) for unit in UNITS}}
    return [
        _short({"plan": "unit-best", "model": model, **summary(unit, of[unit])})
        for model, of in groups.items()
        for unit in UNITS
        if of[unit]
    ]


def _joined(measured: Mapping[str, dict[str, Curves]], unit: str) -> Curves:
    return {place: points for of in measured.values() for place, points in of[unit].items()}


def _short(line: Line) -> Line:
    return {
        name: _short(each) if isinstance(each, dict) else rounded(each) if isinstance(each, float) else each
        for name, each in line.items()
    }


def changes(sampled: Mapping[str, Sequence[Line]]) -> list[Line]:
    """A line for each unit and push, of each model that was sampled and of both: how far pictures are from CFG's own at
    one scale, by the median of each place."""
    both = [line for lines in sampled.values() for line in lines]
    found = []
    for model, lines in {**sampled, "both": both}.items():
        places = [line for line in lines if "changes" in line]
        for push in sorted({line["push"] for line in places}):
            at = [line for line in places if line["push"] == push]
            for unit in UNITS:
                medians = [float(torch.tensor(line["changes"][unit]).median()) for line in at]
                about = {"plan": "unit-best", "model": model, "unit": unit, "method": "single", "push": push}
                about |= {"places": len(at), "scale": at[0]["scales"][unit]}
                found.append(about | _short(apart(medians) | {"at_one_cfg": _at_one_cfg(at, medians)}))
    return found


def _at_one_cfg(lines: Sequence[Line], values: Sequence[float]) -> float:
    """The spread of the values at one CFG scale; the median over CFG scales."""
    of: dict[float, list[float]] = {}
    for line, value in zip(lines, values, strict=True):
        of.setdefault(line["guidance_scale"], []).append(value)
    return float(torch.tensor([apart(each)["spread"] for each in of.values()]).median())


def table(lines: Sequence[Line]) -> str:
    """What the searches say; a row for each unit, of one model and of both."""
    head = ["unit", "places", "a scale is better (clearly)", "best scale", "spread", "too much in", "at", "spread"]
    head += ["one scale", "FD at it", "worst place", "FD at each place's best"]
    rows = [
        [
            f"`{line['unit']}`",
            f"{line['places']}{_whose(line)}",
            f"{line['better']} ({line['clear']})",
            *_range(line["best"]),
            f"{line['limits']}",
            *_range(line["too_much"]),
            f"{line['single']:.2g}",
            *(f"{line[name]:.1f} %" for name in ("fd", "worst", "own")),
        ]
        for line in lines
    ]
    return markdown(head, rows)


def _whose(line: Line) -> str:
    return ", both models" if line["model"] == "both" else ""


def sampled_table(lines: Sequence[Line], pooled: Sequence[Line]) -> str:
    """What was sampled in each unit: `lines` of changes, of one model and of both, and of one model's `pooled`."""
    metrics = {(line["push"], line["unit"]): line["metrics"] for line in pooled}
    rows = []
    for line in lines:
        row = [f"`{line['unit']}`", f"{line['places']}{_whose(line)}", f"{line['scale']:.3g}", *_range(line)]
        row.append(f"{line['at_one_cfg']:.3g}")
        of = metrics.get((line["push"], line["unit"])) if line["model"] != "both" else None
        rows.append([*row, *(_against(of[name], name) if of else "" for name in ("fd", "kid", "right", "clipped"))])
    return markdown(
        ["unit", "places", "scale", "change", "spread", "at one CFG scale", "FD", "KID × 1000", "right", "clipped"],
        rows,
    )


def _against(of: Mapping[str, float], name: str) -> str:
    times, unit, digits = {"fd": (1, "", 1), "kid": (1000, "", 1)}.get(name, (100, " %", 1))
    shown = [f"{times * of[key]:.{digits}f}" for key in ("value", "to_baseline_error")]
    return f"{shown[0]}{unit} ({times * of['to_baseline']:+.{digits}f} ± {shown[1]})"


def _range(found: dict[str, float] | None) -> tuple[str, str]:
    if found is None:
        return "none", ""
    ends = f"{found['median']:.2g} ({found['low']:.2g} to {found['high']:.2g})"
    return ends, f"{found['spread']:.3g} ({found['spread_least']:.3g} to {found['spread_most']:.3g})"


def main(argv: list[str] | None = None) -> int:
    args = arguments.best(argv)
    measured = {}
    for model in MODELS:
        searched = [line for name in SEARCHES for line in read_lines(args.out / f"{name}-{model}.jsonl")]
        measured[model] = curves(model, searched, read_lines(args.out / f"units-{model}.jsonl"))
    sampled = {model: read_lines(args.out / f"unit-single-{model}.jsonl") for model in MODELS}
    lines = summaries(measured) + changes(sampled)
    write_lines(args.out / "unit-best.jsonl", lines)
    print(f"{len(lines)} lines: {args.out / 'unit-best.jsonl'}")
    return 0
