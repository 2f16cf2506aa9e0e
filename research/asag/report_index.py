"""The figures of the first page of all research: few bars each, from the measured lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from research.asag.report_figures import COLOURS, save
from research.asag.report_numbers import Numbers

_LIGHT = "#9fb6d8"
# What a bar is called, and the places of its lines; see report_numbers.
GAINS = {
    "MMDiT, no captions, Clean": ("confirm-mmdit u asag", "fresh-mmdit u asag"),
    "MMDiT, CFG 2, block joint.1": ("confirm-mmdit c asag", "fresh-mmdit c asag"),
    "UNet, no captions, scale 0.75": ("main-unet u best asag", "fresh-unet u asag"),
    "UNet, CFG 2, scale 1.5": ("main-unet c paper asag", "fresh-unet c asag guidance_scale=2"),
    "UNet, CFG 4, scale 1.5": ("strong-unet paper asag", "fresh-unet c asag guidance_scale=4"),
}
MAPS = {
    "UNet: ASAG": "main-unet u paper asag",
    "UNet: SEG": "main-unet u norm seg",
    "UNet: uniform map": "main-unet u norm uniform",
    "UNet: PAG": "main-unet u norm pag",
    "MMDiT, as Clean: ASAG": "confirm-mmdit u asag",
    "MMDiT, as Clean: SEG": "confirm-mmdit u seg",
    "MMDiT, as Clean: uniform map": "confirm-mmdit u uniform",
    "MMDiT, as Clean: PAG": "confirm-mmdit u pag",
}
BURNING = {
    "no guidance": "main-mmdit u vanilla",
    "ASAG, the paper's settings": "main-mmdit u paper asag",
    "ASAG, preset Clean": "confirm-mmdit u asag",
}
CELL = {
    "CFG alone": "cell-renderings-unet cfg",
    "+ ASAG": "cell-renderings-unet asag",
    "+ uniform map": "cell-renderings-unet uniform",
    "+ SEG": "cell-renderings-unet seg",
    "+ PAG": "cell-renderings-unet pag",
}
CELL_METRICS = {"fd": "FD, our classifier", "fd_network": "FD, a network not trained here"}


class Bar(NamedTuple):
    """A bar's length, the error of its end, and its colour."""

    value: float
    error: float
    colour: str


def draw(folder: Path) -> None:
    """All figures, into `images`, where the first page has a text. Raises report_numbers.PlaceError."""
    if not (folder / "texts" / "research.txt").exists():
        return
    numbers, images = Numbers(folder.parent), folder / "images"
    gains = {name: [_change(numbers, place) for place in places] for name, places in GAINS.items()}
    gains = {name: [first, second._replace(colour=_LIGHT)] for name, (first, second) in gains.items()}
    bars({"change of FD in % (second bar: fresh captions and noise)": gains}, images / "index-gains.png")
    maps = {name: [_change(numbers, place)] for name, place in MAPS.items()}
    bars({"change of FD in %, without captions, equal push": maps}, images / "index-maps.png")
    bars({"FD": {name: [_fd(numbers, place)] for name, place in BURNING.items()}}, images / "index-burning.png")
    cell = {
        label: {name: [_fd(numbers, place, metric, "to_asag_error")] for name, place in CELL.items()}
        for metric, label in CELL_METRICS.items()
    }
    bars(cell, images / "index-cell.png")


def _change(numbers: Numbers, place: str) -> Bar:
    """How FD differs from the baseline's, in per cent of that."""
    line = numbers.line(place)
    metric = line["metrics"]["fd"]
    baseline = metric["value"] - metric["to_baseline"]
    colour = COLOURS[line["method"]]
    return Bar(100 * metric["to_baseline"] / baseline, 100 * metric["to_baseline_error"] / baseline, colour)


def _fd(numbers: Numbers, place: str, name: str = "fd", error: str = "to_baseline_error") -> Bar:
    line = numbers.line(place)
    metric = line["metrics"][name]
    return Bar(metric["value"], metric[error], COLOURS[line["method"]])


def bars(panels: Mapping[str, Mapping[str, Sequence[Bar]]], path: Path) -> None:
    """Horizontal bars from top to bottom, in a panel for each label, which have the same rows; those of one row lie
    side by side."""
    first = next(iter(panels.values()))
    height = 0.6 + 0.32 * len(first) * max(map(len, first.values())) ** 0.5
    figure = Figure(figsize=(7.5, height), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (label, rows) in zip(axes, panels.items(), strict=True):
        for place, group in enumerate(rows.values()):
            _group(axis, place, group)
        axis.axvline(0, color="#333333", linewidth=0.8)
        axis.set_xlabel(label)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(first)), list(first))
    axes[0].invert_yaxis()
    save(figure, path)


def _group(axis: Any, place: int, group: Sequence[Bar]) -> None:
    height = 0.8 / len(group)
    for i, bar in enumerate(group):
        at = place + (i - (len(group) - 1) / 2) * height
        axis.barh(at, bar.value, height, xerr=bar.error or None, color=bar.colour, ecolor="#333333")
