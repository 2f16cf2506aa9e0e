"""Which cells are measured: the papers' tables, the three protocols, and what the papers leave out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asag.lab import papers
from asag.lab.evidence.runs import Run
from asag.lab.mmdit import LAYERS

METHODS = tuple(papers.SCALES)  # ASAG last, as in the tables of its paper
MAIN_CAPTIONS, MAIN_SEEDS = 2000, (1, 2, 3)
SEARCHED = (0.5, 1.0, 2.0, 4.0)  # times the scale of equal perturbation norm, since methods' sizes differ widely
CFG = 2.0
_BLOCKS = {"unet": ("in.1", "in.3", "mid", "out.0", "out.1"), "mmdit": tuple(f"joint.{i}" for i in range(LAYERS))}


@dataclass(frozen=True)
class Cell:
    """A run and its place in the tables. Differences are taken to `baseline`, and to `rival`, where there is one:
    ASAG in the same protocol."""

    plan: str
    protocol: str
    method: str
    run: Run
    baseline: Run
    rival: Run | None = None

    @property
    def condition(self) -> str:
        return "conditional" if self.run.conditional else "unconditional"


@dataclass(frozen=True)
class Plan:
    """Cells, and what they are sampled with unless the command says otherwise."""

    cells: tuple[Cell, ...]
    captions: int
    seeds: tuple[int, ...]


class Scales:
    """Scales found by `calibrate` (of equal perturbation norm) and `search` (each method's best), by model,
    condition, protocol and method; a JSON file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, model: str, condition: str, protocol: str) -> dict[str, float]:
        """By method; those that haven't been found yet are missing."""
        if protocol == "paper":
            return papers.SCALES
        return self.found.get(model, {}).get(condition, {}).get(protocol, {})

    def put(self, model: str, condition: str, protocol: str, scales: dict[str, float]) -> None:
        self.found.setdefault(model, {}).setdefault(condition, {})[protocol] = scales
        written = self.path.with_suffix(".part")
        written.write_text(json.dumps(self.found, indent=2) + "\n")
        written.replace(self.path)


def baseline(model: str, conditional: bool, **rest: Any) -> Run:
    """What guidance is added to: no guidance without captions, CFG with them."""
    return Run.of(model, conditional, **{"guidance_scale": CFG if conditional else 1.0, **rest})


def guided(base: Run, settings: dict[str, Any]) -> Run:
    return Run.of(base.model, base.conditional, settings, guidance_scale=base.guidance_scale, steps=base.steps)


def main_plan(model: str, scales: Scales) -> Plan:
    """The paper's Table 1 (and Table 3's maps) in three protocols: its scales, equal norms, each method's best."""
    cells = []
    for conditional in (False, True):
        base = baseline(model, conditional)
        condition = "conditional" if conditional else "unconditional"
        asag = guided(base, {"method": "asag", "scale": papers.SCALES["asag"]})
        cells.append(Cell("main", "none", "vanilla", Run.of(model, conditional), base, asag))
        if conditional:
            cells.append(Cell("main", "none", "cfg", base, base, asag))
        for protocol in ("paper", "norm", "best"):
            found = scales.get(model, condition, protocol)
            # ASAG at its paper's scale is what the others' norms are made equal to.
            names = [name for name in METHODS if name in found and (protocol, name) != ("norm", "asag")]
            runs = {name: guided(base, {"method": name, "scale": found[name]}) for name in names}
            rival = runs.get("asag", asag if protocol == "norm" else None)
            cells += [Cell("main", protocol, name, run, base, rival) for name, run in runs.items()]
    return Plan(tuple(cells), MAIN_CAPTIONS, MAIN_SEEDS)


def search_plan(model: str, scales: Scales) -> Plan:
    """Every method over a grid of scales, on noise of a seed that the main plan doesn't use; needs `calibrate`."""
    cells = []
    for conditional in (False, True):
        base = baseline(model, conditional)
        cells.append(Cell("search", "search", "cfg" if conditional else "vanilla", base, base))
        equal = scales.get(model, "conditional" if conditional else "unconditional", "norm")
        for times in SEARCHED:
            for name, scale in equal.items():
                settings = {"method": name, "scale": float(f"{scale * times:.3g}")}
                cells.append(Cell("search", "search", name, guided(base, settings), base))
    return Plan(tuple(cells), 500, (101,))


def _sweep(name: str, variations: Callable[[str], list[dict[str, Any]]]) -> Callable[[str, Scales], Plan]:
    """ASAG with CFG and without captions, over settings."""

    def plan(model: str, scales: Scales) -> Plan:
        cells = []
        for conditional in (False, True):
            base = baseline(model, conditional)
            cells.append(Cell(name, "search", "cfg" if conditional else "vanilla", base, base))
            cells += [Cell(name, "search", "asag", guided(base, each), base) for each in variations(model)]
        return Plan(tuple(cells), 500, (101,))

    return plan


def _blocks(model: str) -> list[dict[str, Any]]:
    return [{"blocks": name, "scale": scale} for name in _BLOCKS[model] for scale in (0.5, 1.5, 4.0)]


def _adaptive(model: str) -> list[dict[str, Any]]:
    fixed = [{"scale": scale} for scale in (3.0, 5.0, 7.0, 10.0)]
    return fixed + [{"scale": scale, "adaptive": True} for scale in (0.02, 0.05, 0.1, 0.2)]


def steps_plan(model: str, scales: Scales) -> Plan:
    """The CFG scale and the number of steps, with ASAG and without."""
    cells = []
    for steps in (6, 8, 10, 14, 20):
        for scale in (1.0, 2.0, 4.0):
            base = baseline(model, True, guidance_scale=scale, steps=steps)
            cells.append(Cell("steps", "search", "cfg", base, base))
            cells.append(Cell("steps", "search", "asag", guided(base, {"scale": 1.5}), base))
    return Plan(tuple(cells), 500, (101,))


PLANS: dict[str, Callable[[str, Scales], Plan]] = {
    "main": main_plan,
    "search": search_plan,
    "blocks": _sweep("blocks", _blocks),
    "strength": _sweep("strength", lambda model: [{"strength": value} for value in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)]),
    "iterations": _sweep("iterations", lambda model: [{"iterations": value} for value in (1, 2, 3, 5, 10)]),
    "window": _sweep(
        "window",
        lambda model: [
            {"start": start, "end": end, "scale": scale}
            for start, end in ((0.0, 0.4), (0.2, 0.6), (0.4, 1.0), (0.0, 1.0))
            for scale in (1.5, 4.0)
        ],
    ),
    "adaptive": _sweep("adaptive", _adaptive),
    "steps": steps_plan,
}
