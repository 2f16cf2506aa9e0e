"""What `drifting` measured: tables with standard errors, what they support, and pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats
from torch import Tensor

from research.drifting.data import Target

Record = dict[str, Any]

# Okabe and Ito's colours, which colour-blind readers tell apart.
STYLES = {
    "one-sided": ("#d55e00", "s"),
    "one-sided, no self-pairs": ("#009e73", "^"),
    "two-sided": ("#0072b2", "o"),
}
TITLES = {"ring": "ring of 8 Gaussians", "grid": "5×5 grid of Gaussians", "digits": "8×8 digits"}


class Figures(NamedTuple):
    """A figure that was measured, what it is called, and the arrow to where it is better, if it says that by itself."""

    name: str
    title: str
    better: str


SHOWN = (
    Figures("coverage", "class coverage", "↑"),
    Figures("entropy", "class entropy", "↑"),
    Figures("in_class", "samples in a class", ""),
    Figures("emd", "EMD", "↓"),
    Figures("fd", "FD", "↓"),
)
OF_TRAINING = {"temperature": "g", "train_seconds": ".0f"}
NOT_MEASURED = "not measured"
CHANCE = 0.01
COLUMN_ERROR = Figures("column_error", "mass at the wrong data", "↓")

INTRODUCTION = """\
# Sinkhorn drifting: one-sided against two-sided couplings

`python -m research drifting` trains and writes everything here anew. The numbers, with every setting, are in
[drifting.jsonl](results/drifting.jsonl); `--redraw` makes the text and the curves from that file alone.

"Sinkhorn-Drifting Generative Models" claims this: a drift field is less sensitive to the kernel's temperature if its
couplings have both marginals, by Sinkhorn's iteration, than if its kernels are normalised over rows only. On MNIST it
keeps full class coverage over a sweep of temperatures. This page tests the claim on a small scale, from the paper's
abstract alone, with the Sinkhorn code that ASAG's attention uses.

**What is trained.** A perceptron (three hidden layers of {width}) maps noise to a sample in one step, by
‖f(z) − stopgrad(f(z) + V)‖² with V_i = Σ_j P_ij y_j − Σ_j Q_ij x_j: P couples {batch} samples x with {batch} data y,
Q couples x with x.

- *One-sided*: P and Q are exp(−‖x − y‖²/τ), normalised over rows.
- *One-sided, no self-pairs*: the same, but Q has no pairs of a sample with itself. At low τ they take nearly all the
  weight of a one-sided Q, so that samples stop repelling each other; without them each still repels its nearest. The
  abstract doesn't say which of the two it means.
- *Two-sided*: both are entropic optimal transport between uniform marginals, by {sweeps} sweeps at each of a ladder of
  temperatures that falls from at most {hottest:g} to τ by fours. The ladder is only a quicker way to the plan at τ.

All else is the same: Adam, whose rate falls from {learning_rate:g} to 0 as a cosine; the number of steps; the seeds.
The last layers are scaled at the start so that samples have the data's mean and total variance: samples that begin at
one point would lose classes for that reason alone. A two-sided step takes longer than a one-sided one.

**Units.** Data are scaled to total variance 1: two points are a squared distance of 2 apart on average. τ and FD are
in these squared units, EMD (Euclidean, by POT) in these units.

**What is measured**, on as many fresh samples as there are held-out data. *Class coverage*: the share of classes that
1 % of the samples or more fall in. A sample falls in a mixture's mode within three of its standard deviations, which
is half-way to the next, and in a digit's class when a classifier trained on the digits gives it 90 %. *Class
entropy*: of those samples, over the largest possible. *Samples in a class*: their share. *FD*: the squared Fréchet
distance; of a mixture on its two coordinates, so that it sees mean and covariance alone, of digits on 20 principal
components. *Mass at the wrong data*: half the mean relative error of P's column sums, at the end. *Seconds*: of one
core that did other work too, for all seeds together. "data": training data in place of samples (the digits' classifier
has seen them). Figures are means ± standard errors over seeds, which vary the start, the noise and the batches, not
the data.

**What isn't here.** MNIST, FFHQ and feature spaces; large generators, and training until nothing changes; kernels of
the distance unsquared, or of several temperatures at once; one-sided training for as long as two-sided takes.
"""

READING = """\
Coverage isn't sharpness. A generator that collapsed has all its samples in a class. Samples spread evenly over the
grid's square would cover every mode, with π/4 = 0.785 of them in one. So a share near that means that the modes are
covered but run into each other, unless a picture shows otherwise.

"One Gaussian" is a single normal distribution with the data's mean and covariance; nothing else was learned.
Full coverage without many more samples in a class than it has means that nothing collapsed. It doesn't mean that
classes were learned.

The tables below say "more" or "less" where a paired t-test over the seeds, which share noise and batches, would find
the difference by chance once in a hundred comparisons or less. No correction is made for how many are compared.
"""


def document(records: Sequence[Record]) -> str:
    """The page."""
    parts = [INTRODUCTION.format(**records[-1]), "## What the figures support"]
    parts += [full_coverage(records), "![figures over temperatures](images/drifting-figures.png)", READING]
    for name in data_names(records):
        chosen = [found for found in records if found["data"] == name]
        parts += [f"## {capitalised(TITLES[name])}: {chosen[-1]['steps']} steps"]
        parts += [table(chosen), "What two-sided has, compared:", differences(chosen)]
        parts += [f"![samples of seed 0](images/drifting-{name}.png)"]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def data_names(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(found["data"] for found in records))


def table(records: Sequence[Record]) -> str:
    """A Markdown table of one data set's records."""
    shown = [figures for figures in (*SHOWN, COLUMN_ERROR) if any(figures.name in found for found in records)]
    lines = [
        ["τ", "method", "seeds", *(figures.title for figures in shown), "seconds"],
        ["---:", "---", *["---:"] * (len(shown) + 2)],
    ]
    for found in records:
        of_training = [f"{found[name]:{spec}}" if found.get(name) else "" for name, spec in OF_TRAINING.items()]
        cells = [cell(found, figures) for figures in shown]
        lines.append([of_training[0], found["method"], str(found["seeds"]), *cells, of_training[1]])
    return markdown(lines)


def cell(found: Record, figures: Figures) -> str:
    if figures.name not in found:
        return ""
    return f"{found[figures.name]:.3f} ± {found[figures.name + '_se']:.3f}"


def differs(one: Record, two: Record, name: str) -> int:
    """1 where `two` has clearly more of a figure, -1 where clearly less, 0 where paired differences don't tell.

    Both have the same seeds, whose noise and batches are the same: a paired t-test over them.
    """
    before, after = one[name + "_each"], two[name + "_each"]
    if before == after or stats.ttest_rel(before, after).pvalue >= CHANCE:
        return 0
    return 1 if two[name] > one[name] else -1


def by_temperature(records: Sequence[Record], method: str) -> dict[float, Record]:
    return {found["temperature"]: found for found in records if found["method"] == method}


def full_coverage(records: Sequence[Record]) -> str:
    """A table: the temperatures at which a method covers every class with every seed, per data set."""
    lines = [["nothing collapsed: every class covered with every seed", *STYLES], ["---"] * (len(STYLES) + 1)]
    for data in data_names(records):
        chosen = [found for found in records if found["data"] == data]
        temperatures = by_temperature(chosen, "two-sided")
        lines.append([TITLES[data], *(covered(by_temperature(chosen, each), len(temperatures)) for each in STYLES)])
    return markdown(lines)


def covered(measured: dict[float, Record], temperatures: int) -> str:
    """Where one method's coverage is full, and of which temperatures, if not all of the sweep's were measured."""
    if not measured:
        return NOT_MEASURED
    full = [f"{temperature:g}" for temperature, found in measured.items() if found["coverage"] == 1]
    if len(full) == temperatures:
        return "at every τ"
    words = f"at τ = {', '.join(full)}" if full else "at no τ"
    return words if len(measured) == temperatures else f"{words} of {', '.join(f'{each:g}' for each in measured)}"


def differences(records: Sequence[Record]) -> str:
    """A table of one data set: where two-sided has more or less of a figure than a one-sided method, and its time."""
    two_sided = by_temperature(records, "two-sided")
    lines = [["against", "of", *(f"τ = {each:g}" for each in two_sided)], ["---"] * (len(two_sided) + 2)]
    for rival in list(STYLES)[:-1]:
        one_sided = by_temperature(records, rival)
        if not one_sided:
            continue
        found = [(one_sided.get(each), two) for each, two in two_sided.items()]
        for figures in SHOWN:
            if figures.name in records[0]:
                lines.append([rival, figures.title, *(difference(*pair, figures.name) for pair in found)])
        lines.append([rival, "training time", *(time_ratio(*pair) for pair in found)])
    return markdown(lines)


def difference(one: Record | None, two: Record, name: str) -> str:
    return NOT_MEASURED if one is None else ("", "more", "less")[differs(one, two, name)]


def time_ratio(one: Record | None, two: Record) -> str:
    if one is None or one["seeds"] != two["seeds"]:
        return NOT_MEASURED
    return f"{two['train_seconds'] / one['train_seconds']:.1f} times"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


def draw_figures(records: Sequence[Record], path: Path) -> None:
    """A line of panels per data set: coverage, entropy, samples in a class, EMD and FD, over the temperature."""
    names = data_names(records)
    figure = Figure(figsize=(3.1 * len(SHOWN), 2.5 * len(names) + 0.5), layout="constrained")
    grid = figure.subplots(len(names), len(SHOWN), squeeze=False, sharex=True)
    for name, line in zip(names, grid, strict=True):
        chosen = [found for found in records if found["data"] == name]
        for axes, figures in zip(line, SHOWN, strict=True):
            draw_panel(axes, chosen, figures)
        line[0].set_ylabel(TITLES[name], fontsize=10)
    for axes, figures in zip(grid[0], SHOWN, strict=True):
        axes.set_title(f"{figures.title} {figures.better}", fontsize=11)
    for axes in grid[-1]:
        axes.set_xlabel("temperature τ")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    save(figure, path)


def draw_panel(axes: Axes, records: Sequence[Record], figures: Figures) -> None:
    """One figure of one data set: every method with standard errors, and what training data score."""
    for method, (colour, marker) in STYLES.items():
        drawn = [found for found in records if found["method"] == method]
        axes.errorbar(
            [found["temperature"] for found in drawn],
            [found[figures.name] for found in drawn],
            [found[figures.name + "_se"] for found in drawn],
            color=colour,
            marker=marker,
            markersize=5,
            capsize=3,
            label=method,
        )
    floor = next(found for found in records if found["method"] == "data")
    axes.axhline(floor[figures.name], color="#555555", linestyle="--", linewidth=1, label="training data")
    temperatures = sorted({found["temperature"] for found in records if found["temperature"] is not None})
    axes.set_xscale("log")
    axes.set_xticks(temperatures, [f"{each:g}" for each in temperatures])
    axes.minorticks_off()
    axes.set_ylim(0, None if figures.better == "↓" else 1.05)
    axes.grid(alpha=0.3)


def draw_samples(target: Target, pictures: dict[tuple[str, float], Tensor], path: Path) -> None:
    """Samples (count, d) by method and temperature: a line per method, a column per temperature."""
    temperatures = list(dict.fromkeys(temperature for _, temperature in pictures))
    figure = Figure(figsize=(1.9 * len(temperatures) + 0.3, 2.0 * len(STYLES) + 0.3), layout="constrained")
    grid = figure.subplots(len(STYLES), len(temperatures), squeeze=False)
    for line, (method, (colour, _)) in zip(grid, STYLES.items(), strict=True):
        line[0].set_ylabel(method.replace(", ", ",\n"), color=colour, fontsize=11)
        for axes, temperature in zip(line, temperatures, strict=True):
            axes.set(xticks=[], yticks=[])
            samples = pictures[method, temperature]
            if target.restore is None:
                draw_points(axes, target.held_out, samples, colour)
            else:
                axes.imshow(mosaic(target.restore(samples[:36]), 6), cmap="gray_r", vmin=0, vmax=16)
    for axes, temperature in zip(grid[0], temperatures, strict=True):
        axes.set_title(f"τ = {temperature:g}", fontsize=11)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """As a PNG of 64 colours, a fraction of the size."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)


def draw_points(axes: Axes, held_out: Tensor, samples: Tensor, colour: str) -> None:
    axes.scatter(held_out[:, 0], held_out[:, 1], s=6, color="#cccccc", linewidths=0)
    axes.scatter(samples[:, 0], samples[:, 1], s=2, color=colour, linewidths=0)
    axes.set(xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), aspect="equal")


def mosaic(images: Tensor, columns: int) -> Tensor:
    """Images (columns², 8, 8) as one, with a pixel of 0 between them."""
    padded = images.new_zeros(columns, columns, 9, 9)
    padded[:, :, :8, :8] = images.unflatten(0, (columns, columns))
    return padded.permute(0, 2, 1, 3).reshape(9 * columns, 9 * columns)
