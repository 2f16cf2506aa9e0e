"""What plans need that has to be found first: scales that push equally far, each method's best, the best settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from asag.lab import papers
from asag.lab.embedded import shipped
from research.asag.cells import METHODS, baseline, guided
from research.asag.found_scales import Scales, three_digits
from research.asag.plans import (
    HIGH,
    RESTRAINED,
    SEARCHED,
    SEARCHES,
    STRONG_SEARCHED,
    WAYS,
    plain_search_plan,
    shared,
    without_contrast,
)
from research.asag.sampling import Run, Sampler, captions
from research.lines import Line, read_lines

_PICTURES = 48
_SEED = 102
_CLOSE = 0.01
_ROUNDS = 16  # of the fixed point, which converges slowly where the size of δ follows the scale


def push(sampler: Sampler, run: Run) -> float:
    """Mean over guided steps and 48 pictures of the RMS of s δ, along the run's own trajectory."""
    _, trace = sampler.batch(run, captions(_PICTURES), shipped.start_noise(_PICTURES, _SEED), figures=True)
    assert trace is not None  # since figures are wanted
    pushes = [torch.tensor(step.scales) * torch.tensor(step.sizes) for step in trace.passes[0].steps]
    return float(torch.stack(pushes).mean())


def matched(sampler: Sampler, base: Run, settings: dict[str, Any], aim: float, start: float) -> float:
    """The scale at which `settings` push as far as `aim`, within 1 %.

    Raises:
        RuntimeError: naming the settings, where it isn't found.
    """
    scale, power, before = start, 1.0, 0.0
    for _ in range(_ROUNDS):
        size = push(sampler, guided(base, {**settings, "scale": scale}))
        error = size / aim - 1
        if abs(error) < _CLOSE:
            return scale
        # Where pushes grow faster than scales, whole steps go past the aim and back.
        power = power / 2 if error * before < 0 else power
        scale, before = three_digits(scale * (aim / size) ** power), error
    raise RuntimeError(f"{settings}: no scale found that pushes by {aim:.3g}; the last one, {scale}, by {size:.3g}")


def calibrate(sampler: Sampler, model: str, scales: Scales, steps: int | None = None) -> None:
    """Find for each method the scale whose push is that of ASAG at the paper's scale."""
    scale = papers.SCALES["asag"]
    for conditional in (False, True):
        base = baseline(model, conditional, steps=steps)
        aim = push(sampler, guided(base, {"scale": scale}))
        found = {name: matched(sampler, base, {"method": name}, aim, scale) for name in METHODS}
        scales.put(model, base.condition, "norm", found)
        print(model, base.condition, found, flush=True)


def calibrate_high(sampler: Sampler, model: str, scales: Scales, steps: int | None = None) -> None:
    """Find the scales of adaptive guidance, and of guidance without contrast, whose pushes are those of ASAG at high
    fixed scales. What was found before stays."""
    for conditional in (False, True):
        base = baseline(model, conditional, steps=steps)
        for high in HIGH:
            protocol = f"push of {high:g}"
            found = dict(scales.get(model, base.condition, protocol))
            missing = [name for name in RESTRAINED if name not in found]
            if not missing:
                continue
            aim = push(sampler, guided(base, {"scale": high}))
            for name in missing:
                # An adaptive scale is about the push itself.
                start = three_digits(aim) if RESTRAINED[name].get("adaptive") else high
                found[name] = matched(sampler, base, RESTRAINED[name], aim, start)
            scales.put(model, base.condition, protocol, found)
            print(model, base.condition, high, found, flush=True)


def calibrate_rivals(sampler: Sampler, model: str, scales: Scales, steps: int | None = None) -> None:
    """Find for each block that was swept without contrast the scales at which the other methods, and in the best block
    ASAG with other strengths and iterations, push as far as ASAG at its best scale there."""
    for conditional in (False, True):
        base = baseline(model, conditional, steps=steps)
        swept = [line for line in _searched(scales, model, base.condition, ("contrast",)) if _in_one_block(line)]
        best: dict[str, Line] = {}
        for line in sorted(swept, key=_distance):
            best.setdefault(line["settings"]["blocks"], line)
        rivals: dict[str, dict[str, float]] = {}
        for block, line in best.items():
            start = line["settings"]["scale"]
            aim = push(sampler, guided(base, line["settings"]))
            # The lines are in the order of their distance.
            ways = {name: way for name, way in WAYS.items() if way["method"] != "asag" or not rivals}
            place = without_contrast(block)
            found = {name: matched(sampler, base, {**place, **way}, aim, start) for name, way in ways.items()}
            rivals[block] = {"asag": start, **found}
            print(model, base.condition, block, rivals[block], flush=True)
        if rivals:
            scales.put(model, base.condition, "rivals", rivals)


def _searched(scales: Scales, model: str, condition: str, names: Iterable[str]) -> list[Line]:
    """The lines of ASAG in the searches `names`, which lie in the folder of the scales."""
    lines = [line for name in names for line in read_lines(scales.path.parent / f"{name}-{model}.jsonl")]
    return _of_one_size([line for line in lines if (line["condition"], line["method"]) == (condition, "asag")])


def _of_one_size(lines: list[Line]) -> list[Line]:
    """The lines with the number of pictures that most have: FD falls with it, so no others can be chosen between."""
    counts = Counter(line["samples"] for line in lines)
    return [line for line in lines if line["samples"] == counts.most_common(1)[0][0]]


def _distance(line: Line) -> float:
    return float(line["metrics"]["fd"]["value"])


def _in_one_block(line: Line) -> bool:
    """Whether a line of the sweep of contrast is of one block and kept none."""
    return "blocks" in line["settings"] and line["settings"].get("contrast") == 0.0


def calibrate_chosen(sampler: Sampler, model: str, scales: Scales, steps: int | None = None) -> None:
    """Choose ASAG's settings with the lowest FD of all searches, and find the scales at which the other methods, in
    the same place and time, push as far."""
    for conditional in (False, True):
        base = baseline(model, conditional, steps=steps)
        searched = _searched(scales, model, base.condition, SEARCHES)
        if not searched:
            continue
        best = min(searched, key=_distance)["settings"]
        chosen = {"scale": papers.SCALES["asag"], **best, "method": "asag"}
        aim = push(sampler, guided(base, chosen))
        # The paper's plan is a rival where another strength or number of iterations did best.
        paper = {**shared(chosen), "method": "asag", "scale": chosen["scale"]}
        another = guided(base, paper).key != guided(base, chosen).key
        names = [name for name in METHODS if name != "asag" or another]
        # From what was found before, so that pictures which were sampled with it are kept where it still fits.
        known = scales.get(model, base.condition, "chosen norm")
        found = {
            name: matched(sampler, base, {**shared(chosen), "method": name}, aim, known.get(name, chosen["scale"]))
            for name in names
        }
        scales.put(model, base.condition, "chosen", chosen)
        scales.put(model, base.condition, "chosen norm", found)
        print(model, base.condition, chosen, found, flush=True)


def choose_best(path: Path, model: str, scales: Scales) -> None:
    """Of the lines of the search: the scale with the lowest FD, for each method that was searched at all scales."""
    for condition in ("unconditional", "conditional"):
        if best := _lowest(path, condition, len(SEARCHED)):
            scales.put(model, condition, "best", best)


def choose_strong(path: Path, model: str, scales: Scales) -> None:
    """The same with a stronger CFG."""
    if best := _lowest(path, "conditional", len(STRONG_SEARCHED)):
        scales.put(model, "conditional", "strong", best)


def _lowest(path: Path, condition: str, searched: int) -> dict[str, float]:
    """The scale with the lowest FD of each method that has as many lines as were `searched`."""
    lines = [line for line in _of_one_size(read_lines(path)) if line["condition"] == condition]
    of = {method: [line for line in lines if line["method"] == method] for method in METHODS}
    return {
        method: min(found, key=_distance)["settings"]["scale"] for method, found in of.items() if len(found) == searched
    }


def choose_plain(path: Path, model: str, scales: Scales) -> None:
    """Of the lines of the search of captions without CFG: each method's settings with the lowest FD. None are chosen
    before all cells are there, as some methods could have been searched further than others."""
    lines = _of_one_size(read_lines(path))
    if len(lines) < len(plain_search_plan(model, scales).cells):
        return
    best: dict[str, Any] = {}
    for line in sorted((line for line in lines if line["settings"]), key=_distance):
        best.setdefault(line["method"], line["settings"])
    scales.put(model, "conditional", "plain", best)
