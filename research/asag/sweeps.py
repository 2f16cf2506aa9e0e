"""Sweeps of ASAG's settings: where it guides, when, and how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asag.lab.embedded.architecture_mmdit import LAYERS
from research.asag.cells import Cell, Plan, baseline, guided, unguided
from research.asag.found_scales import Scales

BLOCKS = {"unet": ("in.1", "in.3", "mid", "out.0", "out.1"), "mmdit": tuple(f"joint.{i}" for i in range(LAYERS))}


def _sweep(name: str, variations: Callable[[str], list[dict[str, Any]]]) -> Callable[[str, Scales], Plan]:
    """ASAG with CFG and without captions, over settings."""

    def plan(model: str, scales: Scales) -> Plan:
        cells = []
        for conditional in (False, True):
            base = baseline(model, conditional)
            cells.append(unguided(name, base))
            for each in variations(model):
                # Beside a push without its contrast stands the whole one.
                whole = {key: value for key, value in each.items() if key != "contrast"}
                rival = guided(base, whole) if whole != each else None
                cells.append(Cell(name, "search", "asag", guided(base, each), base, rival))
        return Plan.search(cells)

    return plan


# Up to the paper's: without captions the searches over scales found nothing better for ASAG above it.
_SCALES = (0.15, 0.5, 1.5)
_WINDOWS = ((0.0, 0.4), (0.2, 0.6), (0.4, 1.0), (0.0, 1.0))


def over_blocks(model: str) -> list[dict[str, Any]]:
    return [{"blocks": name, "scale": scale} for name in BLOCKS[model] for scale in _SCALES]


def _windows(model: str) -> list[dict[str, Any]]:
    # Fewer steps bear more; in the transformer, where a block is one of few, the middle scale is too much already.
    scales = _SCALES[1:] if model == "unet" else _SCALES[:2]
    return [{"start": start, "end": end, "scale": scale} for start, end in _WINDOWS for scale in scales]


def _contrasts(model: str) -> list[dict[str, Any]]:
    without = [{**each, "contrast": 0.0} for each in over_blocks(model)]
    return without + [{"scale": scale, "contrast": 0.5} for scale in _SCALES]


def _rescaled(model: str) -> list[dict[str, Any]]:
    return [{"scale": scale, "rescale": value} for scale in _SCALES for value in (0.0, 0.5, 1.0)]


SWEEPS: dict[str, Callable[[str, Scales], Plan]] = {
    "blocks": _sweep("blocks", over_blocks),
    "strength": _sweep("strength", lambda model: [{"strength": value} for value in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)]),
    "iterations": _sweep("iterations", lambda model: [{"iterations": value} for value in (1, 2, 3, 5, 10)]),
    "window": _sweep("window", _windows),
    "rescale": _sweep("rescale", _rescaled),
    "contrast": _sweep("contrast", _contrasts),
}
