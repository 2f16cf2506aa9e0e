"""The section of the page on classifier guidance of pictures, and its figures, from its JSON lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from asag.lab.embedded import shipped
from research.guidance_breaks import figures
from research.guidance_breaks.figures import BLACK, GREY
from research.guidance_breaks.tables import Record, chosen, mean, name_of, shown
from research.guidance_breaks.toy import with_error
from research.lines import markdown

CHANCE = 0.01  # of finding a difference where there is none
# Table 2: accuracy in percent, FID, LPIPS; the row with clipping is in the text of Section 5.1.
PAPER = {
    ("unguided", 0.0): (10.2, 3.21, 0.68),
    ("fixed", 10.0): (91.5, 4.89, 0.59),
    ("fixed", 30.0): (98.3, 18.42, 0.27),
    ("clip-gradient", 30.0): (94.1, 9.87, 0.41),
    ("adaptive", 30.0): (96.8, 5.34, 0.55),
}
METRICS = {
    "objects_right": "objects right",
    "guide_right": "by the guide",
    "distance": "distance",
    "diversity": "diversity",
    "diversity_within": "within a caption",
    "contrast": "contrast",
    "diverged": "diverged",
    "push": "push",
}
_SHARED = (("fixed", "constant"), ("adaptive", "constant"), ("adaptive", "bell"), ("clip-gradient", "constant"))
CURVES = {
    **{key: figures.CURVES[key] for key in _SHARED},
    ("unguided", "constant"): ("unguided", BLACK, "P", ""),
    ("captions", "constant"): ("the model's own captions", GREY, "*", ""),
}


def title(record: Record) -> str:
    """A cell's name."""
    if record["method"] in ("captions", "unguided"):
        return CURVES[record["method"], "constant"][0]
    return name_of(record) + (", held in ±1.1" if record["clipped"] else "")


def rows(records: Sequence[Record]) -> Iterator[list[str]]:
    for record in chosen(records, experiment="pictures"):
        plain = record["schedule"] == "constant" and not record["clipped"]
        paper = PAPER.get((record["method"], record["scale"])) if plain else None
        cells = [f"{paper[0]:.1f}", f"{paper[1]:.2f}", f"{paper[2]:.2f}"] if paper else ["", "", ""]
        yield [title(record), *cells, *(shown(record, metric) for metric in METRICS)]


def trade(records: Sequence[Record]) -> Figure:
    """Objects right against the diversity within a caption, and against the distance to drawings, over λ."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, metric in zip(panels, ("diversity_within", "distance"), strict=True):
        for (method, schedule), (label, colour, marker, line) in CURVES.items():
            where = {"experiment": "pictures", "method": method, "schedule": schedule, "clipped": False}
            found = chosen(records, **where)
            across, up = ([mean(record, name) for record in found] for name in (metric, "objects_right"))
            errors = [[record["metrics"][name][1] for record in found] for name in (metric, "objects_right")]
            style = {"color": colour, "marker": marker, "ls": line or "none", "markersize": 6, "linewidth": 1.2}
            axes.errorbar(across, up, errors[1], errors[0], label=label, **style)
            for record, place in zip(found, zip(across, up, strict=True), strict=True):
                if record["scale"]:
                    text = f"{record['scale']:g}"
                    axes.annotate(text, place, (5, 4), textcoords="offset points", fontsize=8, color=colour)
        axes.grid(alpha=0.3)
    panels[0].set(xlabel="diversity within a caption, to drawings'", ylabel="objects right, by the judge")
    panels[1].set(xlabel="feature distance to drawings", xscale="log")
    panels[0].legend(fontsize=8)
    return figure


def sheet(found: Sequence[tuple[Record, Tensor]], group: int, columns: int = 10) -> Figure:
    """Pictures (B,3,32,32) of the same captions and noise, a row per cell; two samples of each caption."""
    figure = Figure(figsize=(columns * 0.75 + 2.2, 0.78 * len(found)), layout="constrained")
    grid = figure.subplots(len(found), columns, squeeze=False)
    chosen_ones = [caption * group + sample for caption in range(columns // 2) for sample in range(2)]
    for line, (record, images) in zip(grid, found, strict=True):
        pictures = shipped.to_pil(images[[place for place in chosen_ones if place < len(images)]])
        for axes, picture in zip(line, pictures, strict=False):
            axes.imshow(picture)
        for axes in line:
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(title(record), rotation=0, ha="right", va="center", fontsize=8)
    return figure


HEAD = """\
## Pictures (Table 2)

To repeat: `python -m research guidance_breaks --run pictures`: {seeds} seeds of {samples} pictures, {captions}
captions with {group} each. ± is the standard error over seeds. The numbers are in
[adaptive-classifier.jsonl](results/adaptive-classifier.jsonl), the code is in `research/guidance_breaks/pictures.py`.

The embedded model draws without a caption and is guided towards a caption's objects by the gradient in x_t of their
log-probability in the predicted clean picture, by a classifier, the guide. {steps} DDIM steps, η = 1. The guide,
newly trained, reads {guide:.1%} of {drawings} fresh drawings right; the shipped classifier, which only judges, reads
{judge:.1%}. The paper has CIFAR-10, 1000 steps and a ResNet-18 of 95 %, and doesn't say what judged its samples. The
two can be compared in their pattern only.

- **Objects right**: exactly the asked objects, by the judge; **by the guide** itself.
- **Distance**: the kernel distance of the judge's features to drawings', in place of FID, unbiased for few samples.
- **Diversity**: the mean distance between two samples' features, in parts of that between drawings, in place of LPIPS;
  **within a caption**, between samples of the same caption.
- **Contrast**: standard deviation of a picture's values, in parts of the drawings'. **Diverged**: share of samples
  whose RMS is above 1.1, which no picture's is. **Push**: the mean over steps of ‖λ∇log r‖ of the median sample.
- **Held in ±1.1**: the predicted clean picture, at every step, as the model's own scheduler does. Elsewhere it isn't,
  so that divergence shows.
"""


def findings(records: Sequence[Record]) -> Iterator[str]:
    """A line for each scale that was tried both ways: adaptive less fixed over the same seeds, with the error of that
    difference, and whether a paired t-test finds it clear."""
    for fixed in chosen(records, experiment="pictures", method="fixed", clipped=False):
        wanted = {"method": "adaptive", "schedule": "constant", "scale": fixed["scale"], "clipped": False}
        for adaptive in chosen(records, experiment="pictures", **wanted):
            differences = []
            for name in ("objects_right", "distance", "diversity_within"):
                ours, theirs = adaptive["each"][name], fixed["each"][name]
                difference, error = with_error(torch.tensor(ours).double() - torch.tensor(theirs).double())
                clear = ours != theirs and stats.ttest_rel(ours, theirs).pvalue < CHANCE
                unclear = "" if clear else " (not clear)"
                differences.append(f"{METRICS[name]} {difference:+.3f} ± {error:.3f}{unclear}")
            yield f"- Adaptive λ₀ = {fixed['scale']:g} less fixed λ = {fixed['scale']:g}: {'; '.join(differences)}."


def section(records: Sequence[Record]) -> str:
    """The section of the page. Raises IndexError where lines of `adaptive_pictures.run` are missing."""
    classifiers, first = chosen(records, experiment="classifiers")[0], chosen(records, experiment="pictures")[0]
    sizes = {name: first[name] for name in ("captions", "group", "steps")}
    samples, seeds = first["captions"] * first["group"], len(first["seeds"])
    head = ["", "paper: accuracy, %", "FID", "LPIPS", *(f"ours: {name}" for name in METRICS.values())]
    parts = [
        HEAD.format(seeds=seeds, samples=samples, drawings=classifiers["drawings"], **sizes, **classifiers["accuracy"]),
        markdown(head, rows(records)) + "\n",
        "The paper claims that at a scale of 30 adaptive guidance keeps accuracy and loses little diversity, where a "
        "fixed scale collapses. Higher scales are tried here, too. The differences are over the same seeds, which "
        "share captions and noise, ± their standard error. A difference is clear where a paired t-test would find as "
        "much by chance once in a hundred times or less:\n",
        "\n".join(findings(records)) + "\n",
        "![Objects right, diversity and distance](images/adaptive-classifier.png)\n",
        "![Pictures of each setting](images/adaptive-pictures.png)\n",
        "Pictures of one seed, the same captions and noise in every row, two of each caption.\n",
    ]
    return "\n".join(parts)
