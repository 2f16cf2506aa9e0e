"""Which cells are measured: the papers' tables, the three protocols, and what the papers leave out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from asag.lab import papers
from asag.presets import PRESETS
from research.asag.cells import METHODS, Cell, Plan, baseline, guided, unguided
from research.asag.found_scales import Scales, three_digits
from research.asag.sampling import Run
from research.asag.sweeps import SWEEPS, over_blocks

# Times the scale of equal perturbation norm, since methods' sizes differ widely.
SEARCHED = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
STRONG_CFG = 4.0
_CLAIMED = ("pag", "seg", "uniform")  # what ASAG's gain is compared with
STRONG_SEARCHED = (0.25, 1.0, 2.0, 4.0, 8.0)  # with CFG 2 the highest of those did best
_OWN = ("method", "scale", "strength", "iterations")  # the others' plans have no strength and need no iterations
HIGH = (3.0, 5.0, 7.0, 10.0)  # where ASAG may burn, and what may keep it from that
RESTRAINED: dict[str, dict[str, Any]] = {
    "adaptive": {"adaptive": True},
    "adaptive bell": {"adaptive": True, "schedule": "bell"},
    "no contrast": {"contrast": 0.0},
}
# Two presets, and what they could be in unit cfg: around the best of the searches in the UNet, below too much.
IN_UNITS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Gentle": ({"scale": 0.8}, {"scale": 0.1, "unit": "cfg"}),
    "Strong": ({"scale": 4.0}, {"scale": 0.5, "unit": "cfg"}),
}
EVERY = {"unet": ("Fast", "Strong"), "mmdit": ("Fast", "Clean")}
# The other methods, and ASAG's plan with other strengths and more iterations.
WAYS: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in METHODS if name != "asag"},
    **{f"strength {value:g}": {"method": "asag", "strength": value} for value in (0.25, 0.5, 2.0, 4.0)},
    "iterations 5": {"method": "asag", "iterations": 5},
}


def main_plan(model: str, scales: Scales) -> Plan:
    """The paper's Table 1 (and Table 3's maps) in three protocols: its scales, equal norms, each method's best."""
    cells = []
    for conditional in (False, True):
        base = baseline(model, conditional)
        asag = _paper(base)
        cells.append(Cell("main", "none", "vanilla", Run.of(model, conditional), base, asag))
        if conditional:
            cells.append(Cell("main", "none", "cfg", base, base, asag))
        found = {name: scales.get(model, base.condition, name) for name in ("paper", "norm", "best")}
        cells += _in_protocols("main", base, asag, found)
    return Plan.main(cells)


def _paper(base: Run) -> Run:
    """ASAG at its paper's scale."""
    return guided(base, {"method": "asag", "scale": papers.SCALES["asag"]})


def _in_protocols(plan: str, base: Run, asag: Run, found: Mapping[str, Mapping[str, float]]) -> list[Cell]:
    """Every method at the scales `found` by protocol, compared with ASAG in the same one; `asag` is that at its paper's
    scale, which the others' pushes are made equal to."""
    cells = []
    for protocol, scales in found.items():
        names = [name for name in METHODS if name in scales and (protocol, name) != ("norm", "asag")]
        runs = {name: guided(base, {"method": name, "scale": scales[name]}) for name in names}
        rival = runs.get("asag", asag if protocol == "norm" else None)
        cells += [Cell(plan, protocol, name, run, base, rival) for name, run in runs.items()]
    return cells


def search_plan(model: str, scales: Scales) -> Plan:
    """Every method over a grid of scales; needs `calibrate`."""
    bases = [baseline(model, conditional) for conditional in (False, True)]
    return Plan.search(cell for base in bases for cell in _over_scales("search", base, scales, SEARCHED))


def _over_scales(plan: str, base: Run, scales: Scales, grid: Iterable[float]) -> list[Cell]:
    """Every method at `grid` times the scale of equal push, which was found with the main plan's CFG."""
    cells = [unguided(plan, base)]
    for times in grid:
        for name, scale in scales.get(base.model, base.condition, "norm").items():
            run = guided(base, {"method": name, "scale": three_digits(scale * times)})
            cells.append(Cell(plan, "search", name, run, base))
    return cells


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
        cells.append(unguided("rivals", base))
        for block, found in scales.get(model, base.condition, "rivals").items():
            place = without_contrast(block)
            asag = guided(base, {**place, "scale": found["asag"]})
            cells.append(Cell("rivals", "search", "asag", asag, base))
            for name in [name for name in WAYS if name in found]:
                way = {**place, **WAYS[name], "scale": found[name]}
                cells.append(Cell("rivals", "search", str(way["method"]), guided(base, way), base, asag))
    return Plan.search(cells)


def confirm_plan(model: str, scales: Scales) -> Plan:
    """The settings of ASAG that did best in the searches, on the main plan's captions and noise; with it the other
    methods, and the paper's plan where another one did best, at the same settings with equal push. Needs
    `calibrate-chosen`."""
    cells = []
    for conditional in (False, True):
        base = baseline(model, conditional)
        chosen = scales.get(model, base.condition, "chosen")
        if not chosen:
            continue
        cells += _compared("confirm", base, chosen, scales.get(model, base.condition, "chosen norm"))
    return Plan.main(cells)


def _compared(plan: str, base: Run, chosen: Mapping[str, Any], scales: Mapping[str, float]) -> list[Cell]:
    """`base`, ASAG as `chosen`, and the others at their scales in the same place."""
    asag = guided(base, dict(chosen))
    cells = [unguided(plan, base, "none", asag)]
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
    settings = [{**each, **way} for each in over_blocks(model) for way in _PLAIN]
    cells = [Cell("plain-search", "search", each["method"], guided(base, each), base) for each in settings]
    return Plan.search((unguided("plain-search", base), *cells))


def plain_plan(model: str, scales: Scales) -> Plan:
    """Captions without CFG, on the main plan's captions and noise: what did best in the searches without captions and
    the other methods at the scales that pushed as far there, then each method at its best of `plain-search`. Needs
    `calibrate-chosen` and `plain-search`."""
    base = baseline(model, True, guidance_scale=1.0)
    chosen, norm = (scales.get(model, "unconditional", name) for name in ("chosen", "chosen norm"))
    cells = _compared("plain", base, chosen, norm) if chosen else []
    best = scales.get(model, "conditional", "plain")
    asag = guided(base, best["asag"]) if best else None
    cells += [Cell("plain", "best", name, guided(base, given), base, asag) for name, given in best.items()]
    return Plan.main(cells)


def strong_search_plan(model: str, scales: Scales) -> Plan:
    """Every method over a grid of scales with a stronger CFG; needs `calibrate`."""
    base = baseline(model, True, guidance_scale=STRONG_CFG)
    return Plan.search(_over_scales("strong-search", base, scales, STRONG_SEARCHED))


def strong_plan(model: str, scales: Scales) -> Plan:
    """With a stronger CFG, on the main plan's captions and noise: ASAG at its paper's scale, the others where they
    push equally far with the main plan's CFG, and each method's best of `strong-search`. Needs `calibrate` and that."""
    base = baseline(model, True, guidance_scale=STRONG_CFG)
    asag = _paper(base)
    found = {
        "paper": {"asag": papers.SCALES["asag"]},
        "norm": scales.get(model, base.condition, "norm"),
        "best": scales.get(model, base.condition, "strong"),
    }
    return Plan.main([unguided("strong", base, "none", asag), *_in_protocols("strong", base, asag, found)])


def fresh_plan(model: str, scales: Scales) -> Plan:
    """What ASAG gained in the other tables, once more on captions and noise that nothing was chosen by: the best of
    all searches where it was measured again, else the best scale without captions and the paper's with CFG. Without
    captions the methods that it is compared with, too. Needs `calibrate-chosen` or `search`."""
    bases = [baseline(model, conditional) for conditional in (False, True)]
    cells = []
    for base in bases:
        chosen = scales.get(model, base.condition, "chosen")
        if chosen:
            pushing = {} if base.conditional else scales.get(model, base.condition, "chosen norm")
            cells += _compared("fresh", base, chosen, {name: pushing[name] for name in _CLAIMED if name in pushing})
        elif base.conditional:
            strong = baseline(model, True, guidance_scale=STRONG_CFG)
            for each in (base, strong):
                asag = _paper(each)
                cells += [unguided("fresh", each, "none", asag), Cell("fresh", "paper", "asag", asag, each)]
        elif best := scales.get(model, base.condition, "best"):
            found = {name: best[name] for name in (*_CLAIMED, "asag") if name in best}
            cells += [
                unguided("fresh", base, "none", guided(base, {"method": "asag", "scale": best["asag"]})),
                *_in_protocols("fresh", base, _paper(base), {"best": found}),
            ]
    return Plan.fresh(cells)


def adaptive_plan(model: str, scales: Scales) -> Plan:
    """High scales, fixed, adaptive, adaptive along a bell, and fixed without contrast; `calibrate-high` finds scales of
    equal push. Each is compared with the fixed scale that pushes equally far."""
    cells = []
    for conditional in (False, True):
        base = baseline(model, conditional)
        cells.append(unguided("adaptive", base))
        for scale in HIGH:
            fixed = guided(base, {"scale": scale})
            cells.append(Cell("adaptive", "search", "asag", fixed, base))
            for name, pushed in scales.get(model, base.condition, f"push of {scale:g}").items():
                settings = {**RESTRAINED[name], "scale": pushed}
                cells.append(Cell("adaptive", "search", "asag", guided(base, settings), base, fixed))
    return Plan.search(cells)


def steps_plan(model: str, scales: Scales) -> Plan:
    """The CFG scale and the number of steps: without ASAG, with it at the paper's settings, and with what did best in
    the searches without captions, where they have been made."""
    ways = {"paper": {"scale": papers.SCALES["asag"]}, "chosen": scales.get(model, "unconditional", "chosen")}
    cells = []
    for steps in (6, 8, 10, 14, 20):
        for scale in (1.0, 2.0, 4.0):
            base = baseline(model, True, guidance_scale=scale, steps=steps)
            cells.append(unguided("steps", base, "none"))
            cells += [Cell("steps", name, "asag", guided(base, way), base) for name, way in ways.items() if way]
    return Plan.search(cells)


def every_plan(model: str, scales: Scales) -> Plan:
    """The push computed in every n-th step and used again between, with CFG: the preset Fast, and settings that change
    much, the preset Strong or, in the transformer, which it burns, Clean. Each is compared with itself at 1."""
    base = baseline(model, True)
    cells = [unguided("every", base)]
    for name in EVERY[model]:
        way = {key: value for key, value in PRESETS[name].items() if key != "every"}
        first = guided(base, way)
        cells.append(Cell("every", name, "asag", first, base))
        cells += [Cell("every", name, "asag", guided(base, {**way, "every": n}), base, first) for n in (2, 3, 4)]
    return Plan.search(cells)


def presets_plan(model: str, scales: Scales) -> Plan:
    """Presets in the paper's unit, and beside each what it could be in unit cfg, with CFG and few steps. Captions and
    noise are those that nothing was chosen by."""
    base = baseline(model, True, steps=6)
    cells = [unguided("presets", base)]
    for name, (in_paper, in_cfg) in IN_UNITS.items():
        paper = guided(base, in_paper)
        cells += [Cell("presets", name, "asag", paper, base)]
        cells += [Cell("presets", name, "asag", guided(base, in_cfg), base, paper)]
    return Plan(tuple(cells), 300, (8,), 25_000)


SEARCHES = ("search", *SWEEPS, "rivals")
PLANS: dict[str, Callable[[str, Scales], Plan]] = {
    "main": main_plan,
    "search": search_plan,
    **SWEEPS,
    "rivals": rivals_plan,
    "confirm": confirm_plan,
    "plain-search": plain_search_plan,
    "plain": plain_plan,
    "strong-search": strong_search_plan,
    "strong": strong_plan,
    "fresh": fresh_plan,
    "adaptive": adaptive_plan,
    "steps": steps_plan,
    "every": every_plan,
    "presets": presets_plan,
}
