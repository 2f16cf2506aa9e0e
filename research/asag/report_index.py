"""The figures of the first page of all research: few bars each, from the measured lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

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
CFG = {
    "no CFG": "main-unet c vanilla",
    "CFG 2": "main-unet c cfg",
    "CFG 2 + ASAG": "main-unet c paper asag",
    "CFG 4": "strong-unet cfg",
    "CFG 4 + ASAG": "strong-unet paper asag",
}


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
    bars(gains, "change of FD in % (second bar: fresh captions and noise)", images / "index-gains.png")
    maps = {name: [_change(numbers, place)] for name, place in MAPS.items()}
    bars(maps, "change of FD in %, without captions, equal push", images / "index-maps.png")
    for name, places in {"burning": BURNING, "cfg": CFG}.items():
        bars({label: [_fd(numbers, place)] for label, place in places.items()}, "FD", images / f"index-{name}.png")


def _change(numbers: Numbers, place: str) -> Bar:
    """How FD differs from the baseline's, in per cent of that."""
    line = numbers.line(place)
    metric = line["metrics"]["fd"]
    baseline = metric["value"] - metric["to_baseline"]
    colour = COLOURS[line["method"]]
    return Bar(100 * metric["to_baseline"] / baseline, 100 * metric["to_baseline_error"] / baseline, colour)


def _fd(numbers: Numbers, place: str) -> Bar:
    line = numbers.line(place)
    metric = line["metrics"]["fd"]
    return Bar(metric["value"], metric["to_baseline_error"], COLOURS[line["method"]])


def bars(rows: Mapping[str, Sequence[Bar]], label: str, path: Path) -> None:
    """Horizontal bars from top to bottom; those of one row lie side by side."""
    figure = Figure(figsize=(7.5, 0.6 + 0.32 * len(rows) * max(map(len, rows.values())) ** 0.5), layout="constrained")
    axis = figure.subplots()
    for place, group in enumerate(rows.values()):
        height = 0.8 / len(group)
        for i, bar in enumerate(group):
            at = place + (i - (len(group) - 1) / 2) * height
            axis.barh(at, bar.value, height, xerr=bar.error or None, color=bar.colour, ecolor="#333333")
    axis.set_yticks(range(len(rows)), list(rows))
    axis.invert_yaxis()
    axis.axvline(0, color="#333333", linewidth=0.8)
    axis.set_xlabel(label)
    axis.grid(axis="x", alpha=0.3)
    save(figure, path)
