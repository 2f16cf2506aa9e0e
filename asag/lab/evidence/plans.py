"""Which cells are measured: the papers' tables, the three protocols, and what the papers leave out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from asag.lab import papers
from asag.lab.evidence.found import Scales, three_digits
from asag.lab.evidence.runs import CAPTIONS_SEED, Run
from asag.lab.mmdit import LAYERS

METHODS = tuple(papers.SCALES)  # ASAG last, as in the tables of its paper
MAIN_CAPTIONS, MAIN_SEEDS = 2000, (1, 2, 3)
# Searches have captions and noise that the main plan doesn't use.
_SEARCH = {"captions": 500, "seeds": (101,), "captions_seed": 21_000}
# Times the scale of equal perturbation norm, since methods' sizes differ widely.
SEARCHED = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
CFG = 2.0
STRONG_CFG = 4.0
_OWN = ("method", "scale", "strength", "iterations")  # the others' plans have no strength and need no iterations
HIGH = (3.0, 5.0, 7.0, 10.0)  # where ASAG may burn, and what may keep it from that
RESTRAINED: dict[str, dict[str, Any]] = {
    "adaptive": {"adaptive": True},
    "adaptive bell": {"adaptive": True, "schedule": "bell"},
    "no contrast": {"contrast": 0.0},
}
# The other methods, and ASAG's plan with other strengths and more iterations.
WAYS: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in METHODS if name != "asag"},
    **{f"strength {value:g}": {"method": "asag", "strength": value} for value in (0.25, 0.5, 2.0, 4.0)},
    "iterations 5": {"method": "asag", "iterations": 5},
}
BLOCKS = {"unet": ("in.1", "in.3", "mid", "out.0", "out.1"), "mmdit": tuple(f"joint.{i}" for i in range(LAYERS))}


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
        return self.run.condition


@dataclass(frozen=True)
class Plan:
    """Cells, and what they are sampled with unless the command says otherwise."""

    cells: tuple[Cell, ...]
    captions: int
    seeds: tuple[int, ...]
    captions_seed: int = CAPTIONS_SEED


def baseline(model: str, conditional: bool, **rest: Any) -> Run:
    """What guidance is added to: no guidance without captions, CFG with them."""
    return Run.of(model, conditional, **{"guidance_scale": CFG if conditional else 1.0, **rest})


def guided(base: Run, settings: dict[str, Any]) -> Run:
    return Run.of(base.model, base.conditional, settings, guidance_scale=base.guidance_scale, steps=base.steps)


def _unguided(plan: str, base: Run, protocol: str = "search", rival: Run | None = None) -> Cell:
    """The cell that guidance is added to."""
    return Cell(plan, protocol, "vanilla" if base.guidance_scale == 1.0 else "cfg", base, base, rival)


def main_plan(model: str, scales: Scales) -> Plan:
    """The paper's Table 1 (and Table 3's maps) in three protocols: its scales, equal norms, each method's best."""
    cells = []
    for conditional in (False, True):
        base = baseline(model, conditional)
        asag = guided(base, {"method": "asag", "scale": papers.SCALES["asag"]})
        cells.append(Cell("main", "none", "vanilla", Run.of(model, conditional), base, asag))
        if conditional:
            cells.append(Cell("main", "none", "cfg", base, base, asag))
        for protocol in ("paper", "norm", "best"):
            found = scales.get(model, base.condition, protocol)
            # ASAG at its paper's scale is what the others' norms are made equal to.
            names = [name for name in METHODS if name in found and (protocol, name) != ("norm", "asag")]
            runs = {name: guided(base, {"method": name, "scale": found[name]}) for name in names}
            rival = runs.get("asag", asag if protocol == "norm" else None)
            cells += [Cell("main", protocol, name, run, base, rival) for name, run in runs.items()]
    return Plan(tuple(cells), MAIN_CAPTIONS, MAIN_SEEDS)


def search_plan(model: str, scales: Scales) -> Plan:
    """Every method over a grid of scales; needs `calibrate`."""
    cells = []
    for conditional in (False, True):
        base = baseline(model, conditional)
        cells.append(_unguided("search", base))
        equal = scales.get(model, base.condition, "norm")
        for times in SEARCHED:
            for name, scale in equal.items():
                settings = {"method": name, "scale": three_digits(scale * times)}
                cells.append(Cell("search", "search", name, guided(base, settings), base))
    return Plan(tuple(cells), **_SEARCH)


def _sweep(name: str, variations: Callable[[str], list[dict[str, Any]]]) -> Callable[[str, Scales], Plan]:
    """ASAG with CFG and without captions, over settings."""

    def plan(model: str, scales: Scales) -> Plan:
        cells = []
        for conditional in (False, True):
            base = baseline(model, conditional)
            cells.append(_unguided(name, base))
            for each in variations(model):
                # Beside a push without its contrast stands the whole one.
                whole = {key: value for key, value in each.items() if key != "contrast"}
                rival = guided(base, whole) if whole != each else None
                cells.append(Cell(name, "search", "asag", guided(base, each), base, rival))
        return Plan(tuple(cells), **_SEARCH)

    return plan


# Up to the paper's: the searches over scales found nothing better for ASAG above it, in either model.
_SCALES = (0.15, 0.5, 1.5)
_WINDOWS = ((0.0, 0.4), (0.2, 0.6), (0.4, 1.0), (0.0, 1.0))


def _blocks(model: str) -> list[dict[str, Any]]:
    return [{"blocks": name, "scale": scale} for name in BLOCKS[model] for scale in _SCALES]


def _windows(model: str) -> list[dict[str, Any]]:
    # Fewer steps bear more; in the transformer, where a block is one of few, the middle scale is too much already.
    scales = _SCALES[1:] if model == "unet" else _SCALES[:2]
    return [{"start": start, "end": end, "scale": scale} for start, end in _WINDOWS for scale in scales]


def _contrasts(model: str) -> list[dict[str, Any]]:
    without = [{**each, "contrast": 0.0} for each in _blocks(model)]
    return without + [{"scale": scale, "contrast": 0.5} for scale in _SCALES]


def _rescaled(model: str) -> list[dict[str, Any]]:
    return [{"scale": scale, "rescale": value} for scale in _SCALES for value in (0.0, 0.5, 1.0)]


def shared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of ASAG's settings every method has: where and when it guides, but not how strongly."""
    return {name: value for name, value in settings.items() if name not in _OWN}


def without_contrast(block: str) -> dict[str, Any]:
    """Where and how all methods guide in the plan of rivals."""
    return {"blocks": block, "contrast": 0.0}


def rivals_plan(model: str, scales: Scales) -> Plan:
    """In each block, without contrast: ASAG at its best scale of the sweep of contrast, and as far a push by the other
    methods; in its best block by other strengths and iterations, too. Needs `calibrate-rivals`."""
    cells = []
    for conditional in (False, True):
        base = baseline(model, conditional)
        cells.append(_unguided("rivals", base))
        for block, found in scales.get(model, base.condition, "rivals").items():
            place = without_contrast(block)
            asag = guided(base, {**place, "scale": found["asag"]})
            cells.append(Cell("rivals", "search", "asag", asag, base))
            for name in [name for name in WAYS if name in found]:
                way = {**place, **WAYS[name], "scale": found[name]}
                cells.append(Cell("rivals", "search", str(way["method"]), guided(base, way), base, asag))
    return Plan(tuple(cells), **_SEARCH)


def confirm_plan(model: str, scales: Scales) -> Plan:
    """The settings of ASAG that did best in the searches, on the main plan's captions and noise; beside it the other
    methods, and the paper's plan where another one did best, at the same settings with equal push. Needs
    `calibrate-chosen`."""
    cells = []
    for conditional in (False, True):
        base = baseline(model, conditional)
        chosen = scales.get(model, base.condition, "chosen")
        if not chosen:
            continue
        cells += _beside("confirm", base, chosen, scales.get(model, base.condition, "chosen norm"))
    return Plan(tuple(cells), MAIN_CAPTIONS, MAIN_SEEDS)


def _beside(plan: str, base: Run, chosen: Mapping[str, Any], scales: Mapping[str, float]) -> list[Cell]:
    """`base`, ASAG as `chosen`, and the others at their scales in the same place."""
    asag = guided(base, dict(chosen))
    cells = [_unguided(plan, base, "none", asag)]
    for name, scale in scales.items():
        run = guided(base, {**shared(chosen), "method": name, "scale": scale})
        cells.append(Cell(plan, "chosen", "paper plan" if name == "asag" else name, run, base, asag))
    return [*cells, Cell(plan, "chosen", "asag", asag, base)]


# In each block and at each scale. PAG is also tried as its paper has it, with its contrast.
_PLAIN: tuple[dict[str, Any], ...] = (
    *({"method": name, "contrast": 0.0} for name in ("pag", "seg", "uniform", "asag")),
    {"method": "asag", "strength": 0.25, "contrast": 0.0},
    {"method": "pag"},
)


def plain_search_plan(model: str, scales: Scales) -> Plan:
    """Captions without CFG, as models made to run without it are used: ASAG and the others, block by block."""
    base = baseline(model, True, guidance_scale=1.0)
    settings = [{**each, **way} for each in _blocks(model) for way in _PLAIN]
    cells = [Cell("plain-search", "search", each["method"], guided(base, each), base) for each in settings]
    return Plan((_unguided("plain-search", base), *cells), **_SEARCH)


def plain_plan(model: str, scales: Scales) -> Plan:
    """Captions without CFG, on the main plan's captions and noise: what did best in the searches without captions and
    the other methods at the scales that pushed as far there, then each method at its best of `plain-search`. Needs
    `calibrate-chosen` and `plain-search`."""
    base = baseline(model, True, guidance_scale=1.0)
    chosen, norm = (scales.get(model, "unconditional", name) for name in ("chosen", "chosen norm"))
    cells = _beside("plain", base, chosen, norm) if chosen else []
    best = scales.get(model, "conditional", "plain")
    asag = guided(base, best["asag"]) if best else None
    cells += [Cell("plain", "best", name, guided(base, given), base, asag) for name, given in best.items()]
    return Plan(tuple(cells), MAIN_CAPTIONS, MAIN_SEEDS)


def strong_plan(model: str, scales: Scales) -> Plan:
    """Beside a stronger CFG, on the main plan's captions and noise: the papers' scales, and those that push as far as
    ASAG's beside the main plan's CFG. Needs `calibrate`."""
    base = baseline(model, True, guidance_scale=STRONG_CFG)
    asag = guided(base, {"method": "asag", "scale": papers.SCALES["asag"]})
    cells = [_unguided("strong", base, "none", asag), Cell("strong", "paper", "asag", asag, base, asag)]
    for protocol in ("norm", "paper"):
        for name, scale in scales.get(model, base.condition, protocol).items():
            if name != "asag":
                run = guided(base, {"method": name, "scale": scale})
                cells.append(Cell("strong", protocol, name, run, base, asag))
    return Plan(tuple(cells), MAIN_CAPTIONS, MAIN_SEEDS)


def adaptive_plan(model: str, scales: Scales) -> Plan:
    """High scales, fixed, adaptive, adaptive along a bell, and fixed without contrast; `calibrate-high` finds scales of
    equal push. Differences to the fixed scale that pushes as far are told, too."""
    cells = []
    for conditional in (False, True):
        base = baseline(model, conditional)
        cells.append(_unguided("adaptive", base))
        for scale in HIGH:
            fixed = guided(base, {"scale": scale})
            cells.append(Cell("adaptive", "search", "asag", fixed, base))
            for name, pushed in scales.get(model, base.condition, f"push of {scale:g}").items():
                settings = {**RESTRAINED[name], "scale": pushed}
                cells.append(Cell("adaptive", "search", "asag", guided(base, settings), base, fixed))
    return Plan(tuple(cells), **_SEARCH)


def steps_plan(model: str, scales: Scales) -> Plan:
    """The CFG scale and the number of steps: without ASAG, with it at the paper's settings, and with what did best in
    the searches without captions, where they have been made."""
    ways = {"paper": {"scale": papers.SCALES["asag"]}, "chosen": scales.get(model, "unconditional", "chosen")}
    cells = []
    for steps in (6, 8, 10, 14, 20):
        for scale in (1.0, 2.0, 4.0):
            base = baseline(model, True, guidance_scale=scale, steps=steps)
            cells.append(_unguided("steps", base, "none"))
            cells += [Cell("steps", name, "asag", guided(base, way), base) for name, way in ways.items() if way]
    return Plan(tuple(cells), **_SEARCH)


SEARCHES = ("search", "blocks", "strength", "iterations", "window", "rescale", "contrast", "rivals")
PLANS: dict[str, Callable[[str, Scales], Plan]] = {
    "main": main_plan,
    "search": search_plan,
    "blocks": _sweep("blocks", _blocks),
    "strength": _sweep("strength", lambda model: [{"strength": value} for value in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)]),
    "iterations": _sweep("iterations", lambda model: [{"iterations": value} for value in (1, 2, 3, 5, 10)]),
    "window": _sweep("window", _windows),
    "rescale": _sweep("rescale", _rescaled),
    "contrast": _sweep("contrast", _contrasts),
    "rivals": rivals_plan,
    "confirm": confirm_plan,
    "plain-search": plain_search_plan,
    "plain": plain_plan,
    "strong": strong_plan,
    "adaptive": adaptive_plan,
    "steps": steps_plan,
}
