"""The report's figures, drawn from the measured lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter

from research.asag.tables import METRICS, NAMES, as_titled, conditions_of, number
from research.lines import Line

COLOURS = {
    "vanilla": "#888888",
    "cfg": "#888888",
    "pag": "#d08a2e",
    "seg": "#4a9a5a",
    "uniform": "#8a5ab0",
    "similarity": "#b04a5a",
    "asag": "#2458a6",
}
MARKS = {"pag": "s", "seg": "^", "uniform": "D", "similarity": "v", "asag": "o"}
_OVER_SCALES = ("fd", "kid", "right", "is_like", "contrast", "clipped")
_OVER_BLOCKS = ("fd", "is_like", "contrast")


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def _save_over_steps(figure: Figure, path: Path) -> None:
    for axis in figure.axes:
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    save(figure, path)


def _panels(conditions: Sequence[str], names: Sequence[str], title: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(3.2 * len(names) + 0.4, 2.5 * len(conditions) + 0.3), layout="constrained")
    axes = figure.subplots(len(conditions), len(names), squeeze=False)
    figure.suptitle(title)
    for row, condition in enumerate(conditions):
        for column, name in enumerate(names):
            axes[row][column].set_title(f"{METRICS[name]}, {condition}", fontsize=9)
            axes[row][column].grid(alpha=0.3)
    return figure, axes


def _plain(axis: Any, lines: Sequence[Line], name: str) -> None:
    """The baseline as a line across."""
    for line in lines:
        if not line["settings"]:
            axis.axhline(as_titled(line["metrics"][name]["value"], name), color=COLOURS["cfg"], linestyle=":")


def scales(lines: Sequence[Line], title: str, path: Path) -> None:
    """Figure 6: metrics over the scale, a curve per method; bars are standard errors of the paired difference."""
    conditions = conditions_of(lines)
    figure, axes = _panels(conditions, _OVER_SCALES, title)
    for row, condition in enumerate(conditions):
        here = [line for line in lines if line["condition"] == condition]
        for column, name in enumerate(_OVER_SCALES):
            axis = axes[row][column]
            if not any(name in line["metrics"] for line in here):  # without captions nothing is asked for
                axis.remove()
                continue
            _plain(axis, here, name)
            for method, mark in MARKS.items():
                points = sorted(
                    (
                        line["settings"]["scale"],
                        as_titled(line["metrics"][name]["value"], name),
                        as_titled(line["metrics"][name]["to_baseline_error"], name),
                    )
                    for line in here
                    if line["method"] == method
                )
                if points:
                    at, values, errors = zip(*points, strict=True)
                    style = {"color": COLOURS[method], "marker": mark, "markersize": 4, "label": NAMES[method]}
                    axis.errorbar(at, values, yerr=errors, **style)
            if name == "fd":  # which ranges over two orders of magnitude
                axis.set_yscale("log")
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5)))
                axis.yaxis.set_major_formatter(ScalarFormatter())
            axis.set_xscale("log")
            axis.set_xticks([0.5, 1, 2, 4, 8, 16], ["0.5", "1", "2", "4", "8", "16"])
            axis.minorticks_off()
    axes[0][0].legend(fontsize=7)
    axes[-1][0].set_xlabel("guidance scale s")
    save(figure, path)


def blocks(lines: Sequence[Line], title: str, path: Path) -> None:
    """All blocks by scales: the change of each metric against no guidance, coloured by its paired standard errors."""
    conditions = conditions_of([line for line in lines if line["settings"]])
    figure, axes = _panels(conditions, _OVER_BLOCKS, title)
    for row, condition in enumerate(conditions):
        here = {
            (line["settings"]["blocks"], line["settings"]["scale"]): line
            for line in lines
            if line["condition"] == condition and line["settings"]
        }
        names = list(dict.fromkeys(key[0] for key in here))
        values = sorted({key[1] for key in here})
        for column, name in enumerate(_OVER_BLOCKS):
            axis = axes[row][column]
            axis.grid(False)
            sigmas = [[float("nan")] * len(values) for _ in names]
            for (block, scale), line in here.items():
                metric = line["metrics"][name]
                i, j = names.index(block), values.index(scale)
                sigmas[i][j] = metric["to_baseline"] / metric["to_baseline_error"]
                axis.text(j, i, number(metric["value"], name), ha="center", va="center", fontsize=8)
            axis.imshow(sigmas, cmap="coolwarm", vmin=-12, vmax=12, aspect="auto")
            axis.set_xticks(range(len(values)), [f"{value:g}" for value in values])
            axis.set_yticks(range(len(names)), names)
    figure.supxlabel("guidance scale s; colour: change in paired standard errors, -12 to 12", fontsize=9)
    save(figure, path)


def along(lines: Sequence[Line], title: str, path: Path) -> None:
    """Plans along sampling: entropy, distance from doubly stochastic, sweeps needed."""
    figure = Figure(figsize=(10.5, 3.2), layout="constrained")
    entropy, columns, needed = figure.subplots(1, 3)
    figure.suptitle(title)
    steps = [line["step"] for line in lines]
    entropy.plot(steps, [line["softmax_entropy"] for line in lines], color="#888888", label="SoftMax")
    for cost, colour in (("adversarial", COLOURS["asag"]), ("similarity", COLOURS["similarity"])):
        for iteration, style in (("1", ":"), ("2", "-"), ("5", "--")):
            label = f"{cost}, {iteration} sweeps"
            options = {"color": colour, "linestyle": style, "label": label}
            entropy.plot(steps, [line["costs"][cost]["entropy"][iteration] for line in lines], **options)
            columns.semilogy(steps, [line["costs"][cost]["columns"][iteration] for line in lines], **options)
        needed.plot(steps, [line["costs"][cost]["needed"]["0.001"] for line in lines], color=colour, label=cost)
    entropy.set_title("normalised entropy of rows", fontsize=9)
    columns.set_title("mean |column sum − 1|", fontsize=9)
    needed.set_title("sweeps to mean |Δg| < 1e-3", fontsize=9)
    entropy.legend(handles=entropy.lines[:1], fontsize=7)
    columns.legend(fontsize=6)
    needed.legend(fontsize=7)
    _save_over_steps(figure, path)


def directions(lines: Sequence[Line], title: str, path: Path) -> None:
    """Pushes along sampling: how alike ASAG's, and how much of each is contrast; then ASAG's in each block."""
    figure = Figure(figsize=(10.5, 3.2), layout="constrained")
    alike, contrast, blocks = figure.subplots(1, 3)
    figure.suptitle(title)
    curves: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        curves.setdefault((line["method"], line["block"]), []).append(line)
    for (method, block), rows in curves.items():
        steps = [row["step"] for row in rows]
        if block == "auto":
            style = {"color": COLOURS[method], "label": NAMES[method]}
            alike.plot(steps, [row["to_asag"] for row in rows], **style)
            contrast.plot(steps, [row["contrast"] for row in rows], **style)
        else:
            blocks.plot(steps, [row["contrast"] for row in rows], label=block)
    alike.set_title("cosine to ASAG's push", fontsize=9)
    contrast.set_title("cosine to contrast", fontsize=9)
    blocks.set_title("cosine to contrast, ASAG by block", fontsize=9)
    alike.legend(fontsize=7)
    blocks.legend(fontsize=7)
    _save_over_steps(figure, path)


def losses(curves: Mapping[str, Sequence[Line]], path: Path) -> None:
    """Training losses by model over pictures; each has its own target, so only their course compares."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axis = figure.subplots()
    for name, rows in curves.items():
        axis.semilogy([row["images"] / 1000 for row in rows], [row["loss"] for row in rows], label=name)
    axis.set(xlabel="thousand pictures", ylabel="loss (MSE of the velocity)")
    axis.grid(alpha=0.3)
    axis.legend()
    save(figure, path)
