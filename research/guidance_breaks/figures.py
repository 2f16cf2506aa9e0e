"""The figures of the 2-D experiment, from its JSON lines. The colours are those of Okabe and Ito; markers tell the
curves apart too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from research.guidance_breaks.tables import PAPER, READINGS, Record, chosen, diverged, mean

POINTS = (
    ("unguided", 0.0, "constant"),
    ("fixed", 1.0, "constant"),
    ("fixed", 5.0, "constant"),
    ("fixed", 50.0, "constant"),
    ("adaptive", 50.0, "constant"),
    ("adaptive", 50.0, "bell"),
)
BLACK, GREY = "#000000", "#777777"
BLUE, SKY, ORANGE, GREEN, PURPLE = "#0072B2", "#56B4E9", "#D55E00", "#009E73", "#CC79A7"
# method, schedule: label, colour, marker, line
CURVES = {
    ("target", "constant"): ("exact tilt p·r^λ", GREY, "", ":"),
    ("fixed", "constant"): ("fixed", BLUE, "o", "-"),
    ("fixed", "bell"): ("fixed, bell", SKY, "^", "-"),
    ("adaptive", "constant"): ("adaptive", ORANGE, "s", "--"),
    ("adaptive", "bell"): ("adaptive, bell", PURPLE, "D", "--"),
    ("soft", "constant"): ("soft", GREEN, "v", ""),
    ("clip-gradient", "constant"): ("clip ∇log r", GREEN, "x", ""),
    ("clip-term", "constant"): ("clip λ∇log r", GREEN, "+", ""),
    ("threshold", "constant"): ("dynamic threshold", BLACK, "1", ""),
}


def draw_all(records: Sequence[Record], folder: Path) -> None:
    """Write adaptive-frontier.png, -energy.png, -ablations.png and -samples.png into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in (("frontier", frontier), ("energy", energy), ("ablations", ablations), ("samples", samples)):
        draw(records).savefig(folder / f"adaptive-{name}.png", dpi=110)


def panels(width: float, height: float) -> tuple[Figure, Sequence[Any]]:
    """A figure with a panel for each reading of where β goes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for each, title in zip(axes, READINGS.values(), strict=True):
        each.set_title(title, fontsize=10)
        each.grid(alpha=0.3)
        each.set_axisbelow(True)
    return figure, axes


def frontier(records: Sequence[Record]) -> Figure:
    """Diversity over reward, a curve per method over λ, with the paper's Table 1."""
    figure, axes = panels(10.5, 5.4)
    for each, times_beta in zip(axes, READINGS, strict=True):
        for (method, schedule), (label, colour, marker, line) in CURVES.items():
            found = chosen(records, experiment="frontier", times_beta=times_beta, method=method, schedule=schedule)
            drawn = [record for record in found if not diverged(record)]
            reward, diversity = ([mean(record, metric) for record in drawn] for metric in ("reward", "diversity"))
            style: dict[str, Any] = {
                "color": colour,
                "marker": marker,
                "markersize": 5 if line else 7,
                "linewidth": 1.4,
            }
            each.plot(reward, diversity, label=label, linestyle=line or "none", **style)
        start = chosen(records, experiment="frontier", times_beta=times_beta, method="unguided")[0]
        each.plot(mean(start, "reward"), 1, "P", color=BLACK, markersize=9, label="unguided")
        for (method, scale), (claimed_reward, claimed_diversity, _) in PAPER.items():
            own = method == "adaptive"
            each.plot(
                claimed_reward,
                claimed_diversity,
                "*",
                markersize=14,
                color="white",
                markeredgecolor=ORANGE if own else BLUE,
            )
            place = (10, 2) if own else (-10, -13)
            text = f"λ₀ {scale:g}" if own else f"{scale:g}"
            each.annotate(
                text, (claimed_reward, claimed_diversity), place, textcoords="offset points", fontsize=8, color=GREY
            )
        each.plot([], [], "*", markersize=12, color="white", markeredgecolor=BLUE, label="paper, fixed λ")
        each.plot([], [], "*", markersize=12, color="white", markeredgecolor=ORANGE, label="paper, adaptive")
        each.set(xlabel="reward", xlim=(0.6, 1.01), ylim=(0, 1.05))
    axes[0].set_ylabel("diversity, to unguided samples'")
    axes[0].legend(fontsize=8, loc="lower left", ncols=2)
    return figure


def energy(records: Sequence[Record]) -> Figure:
    """The empirical control energy over λ or λ₀."""
    figure, axes = panels(9.5, 4.2)
    for each, times_beta in zip(axes, READINGS, strict=True):
        for (method, schedule), (label, colour, marker, line) in CURVES.items():
            found = chosen(records, experiment="frontier", times_beta=times_beta, method=method, schedule=schedule)
            if method == "target":
                continue
            scales, energies = [record["scale"] for record in found], [mean(record, "energy") for record in found]
            style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.4}
            each.plot(scales, energies, label=label, linestyle=line or "none", **style)
        each.axvline(22.5, color=GREY, linewidth=1, linestyle=":")
        each.text(24, 0.13, "paper's λ*", va="bottom", fontsize=8, color=GREY)
        each.set(xscale="log", yscale="log", xlabel="λ or λ₀", ylim=(0.1, 1e6))
        each.set_xticks((1, 2, 5, 10, 20, 50, 100), ("1", "2", "5", "10", "20", "50", "100"))
        each.minorticks_off()
        where = {"experiment": "frontier", "times_beta": times_beta, "method": "fixed", "schedule": "constant"}
        beyond = [record for record in chosen(records, **where) if mean(record, "energy") > 1e6]
        said = [f"{mean(record, 'energy'):.0e} at λ = {record['scale']:g}" for record in beyond]
        each.text(0.03, 0.95, "\n".join([*(["fixed, beyond:"] if said else []), *said]), **corner(each))
    axes[0].set_ylabel("control energy Σ‖λ∇log r‖²Δt")
    axes[1].legend(fontsize=8, loc="upper left", ncols=2)
    return figure


def corner(axes: Any) -> dict[str, Any]:
    """How a note is set in the panel's upper left corner."""
    return {"transform": axes.transAxes, "va": "top", "fontsize": 8, "color": BLUE}


def ablations(records: Sequence[Record]) -> Figure:
    """Diversity, and how much λ_t and the push vary over the steps, over α and ε at λ₀ = 50."""
    figure = Figure(figsize=(9.5, 5.6), layout="constrained")
    rows = figure.subplots(2, 2, sharex="col", sharey="row")
    for column, (experiment, symbol) in enumerate((("momentum", "α"), ("epsilon", "ε"))):
        for (times_beta, reading), colour in zip(READINGS.items(), (BLUE, ORANGE), strict=True):
            where = {"experiment": experiment, "times_beta": times_beta}
            constant, bell = (chosen(records, schedule=schedule, **where) for schedule in ("constant", "bell"))
            above, below = rows[:, column]
            draw_curve(
                above, bell, experiment, "diversity", color=colour, marker="D", ls="--", label=f"{reading}, bell"
            )
            draw_curve(above, constant, experiment, "diversity", color=colour, marker="o", label=f"{reading}, constant")
            for metric, what, marker, line in (
                ("scale_variation", "λₜ", "s", "-"),
                ("push_variation", "‖λₜ∇log r‖", "^", ":"),
            ):
                style: dict[str, Any] = {"color": colour, "marker": marker, "ls": line}
                draw_curve(below, constant, experiment, metric, label=f"{what}, {reading}", **style)
        rows[1, column].set_xlabel(f"{symbol}, at λ₀ = 50; bars: 2 standard errors")
        for each in rows[:, column]:
            each.grid(alpha=0.3)
            each.set_ylim(bottom=0)
    rows[0, 0].set_ylabel("diversity")
    rows[1, 0].set_ylabel("std / mean over the steps,\nconstant λ₀")
    for each in rows[:, 1]:
        each.legend(fontsize=8)
    return figure


def draw_curve(axes: Any, found: Sequence[Record], setting: str, metric: str, **style: Any) -> None:
    """A metric's means with two standard errors, evenly spaced, over the values of a setting."""
    values = [f"{record[setting]:g}" for record in found]
    errors = [2 * record["metrics"][metric][1] for record in found]
    axes.errorbar(values, [mean(record, metric) for record in found], errors, markersize=5, **style)


def samples(records: Sequence[Record]) -> Figure:
    """Where samples end, a row per reading, and c."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    rows = figure.subplots(2, len(POINTS), sharex=True, sharey=True)
    for number, (row, times_beta) in enumerate(zip(rows, READINGS, strict=True)):
        for each, (method, scale, schedule) in zip(row, POINTS, strict=True):
            where = {"method": method, "scale": scale, "schedule": schedule, "times_beta": times_beta}
            found = chosen(records, experiment="points", **where)[0]
            across, up = zip(*found["points"], strict=True)
            each.scatter(across, up, s=5, color=BLUE, alpha=0.35, linewidths=0)
            each.plot(*found["scene"]["centre"], "+", color=ORANGE, markersize=10, markeredgewidth=2)
            name = {"fixed": f"fixed λ = {scale:g}", "adaptive": f"adaptive λ₀ = {scale:g}"}.get(method, method)
            if number == 0:
                each.set_title(name + (", bell" if schedule == "bell" else ""), fontsize=9)
            each.set(aspect="equal", xlim=(-0.9, 0.9), ylim=(-0.9, 0.9), xticks=(-0.5, 0, 0.5), yticks=(-0.5, 0, 0.5))
        row[0].set_ylabel(READINGS[times_beta], fontsize=9)
    return figure
