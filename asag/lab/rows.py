"""`python -m asag rows`: a picture of what each option does, on the embedded model, for docs/options.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from asag.hosts.diffusers_pipeline import asag_guidance
from asag.lab import arguments
from asag.lab.embedded import drawings, shipped

CAPTIONS = ("red disc, blue square", "green cross, white triangle", "magenta square, yellow disc")
SEED = 3
STEPS = 25
CFG = 2.0

# The block in which this model reacts the most: in its middle block most options show little.
SHOWN = {"blocks": "in.1", "scale": 2.0}

ROWS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "scale": ("Scale, in block in.1", {f"{value:g}": {"scale": value} for value in (0, 0.8, 1.5, 4, 8)}),
    "blocks": (
        "Blocks, at scale 2",
        {name: {"blocks": name} for name in ("in.1", "in.3", "mid", "out.0", "out.1", "all")},
    ),
    "heads": (
        "Heads, at scale 2",
        {name: {"blocks": name} for name in ("in.1", "in.1:h0", "in.1:h1", "all", "all:aligned", "all:h0")},
    ),
    "method": (
        "Method, in block in.1 at scale 2",
        {name: {"method": name} for name in ("asag", "pag", "seg", "uniform", "similarity")},
    ),
    "amount": (
        "Amount, in block in.1 at scale 4",
        {f"{value:g}": {"amount": value, "scale": 4.0} for value in (0, 0.1, 0.3, 0.6, 1)},
    ),
    "iterations": (
        "Iterations, in block in.1 at scale 2",
        {str(value): {"iterations": value} for value in (1, 2, 5, 20)},
    ),
    "strength": (
        "Strength, in block in.1 at scale 2",
        {f"{value:g}": {"strength": value} for value in (0, 0.5, 1, 2, 5)},
    ),
    "window": (
        "Start and end, in block in.1 at scale 4",
        {
            f"{start:g} to {end:g}": {"start": start, "end": end, "scale": 4.0}
            for start, end in ((0, 1), (0, 0.6), (0, 0.3), (0.4, 1), (0.7, 1))
        },
    ),
    "noise": (
        "Start and end by noise, in block in.1 at scale 4",
        {
            f"{start} to {end}": {"start": start, "end": end, "scale": 4.0}
            for start, end in (("0%", "30%"), ("30%", "60%"), ("60%", "100%"), ("σ 5", "σ 1"))
        },
    ),
    "schedule": (
        "Schedule, in block in.1 at scale 4",
        {name: {"schedule": name, "scale": 4.0} for name in ("constant", "linear", "cosine", "bell")},
    ),
    "rescale": (
        "Rescale, in block in.1 at scale 4",
        {f"{value:g}": {"rescale": value, "scale": 4.0} for value in (0, 0.3, 0.7, 1)},
    ),
    "contrast": (
        "Contrast, in block in.1 at scale 1.5",
        {f"{value:g}": {"contrast": value, "scale": 1.5} for value in (1, 0.7, 0.3, 0)},
    ),
    "push": (
        "Unit push, in block in.1: the scale is the size of the push",
        {f"{value:g}": {"unit": "push", "scale": value} for value in (0.02, 0.05, 0.1, 0.2, 0.5)},
    ),
    "cfg": (
        "Unit cfg at scale 1: the push is as large as CFG's own",
        {name: {"unit": "cfg", "scale": 1.0, "blocks": name} for name in ("in.1", "in.3", "mid", "out.0", "all")},
    ),
}


def draw(path: Path, title: str, pictures: dict[str, torch.Tensor]) -> None:
    """A column for each value, a line for each caption; `pictures` are (captions,3,32,32) in [-1,1]."""
    figure = Figure(figsize=(1.3 * len(pictures), 1.3 * len(CAPTIONS) + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(len(CAPTIONS), len(pictures))
    for column, (name, images) in enumerate(pictures.items()):
        for line, picture in enumerate(shipped.to_pil(images, scale=3)):
            grid[line][column].imshow(picture)
            grid[line][column].set(xticks=[], yticks=[])
        grid[0][column].set_title(name, fontsize=10)
    figure.savefig(path, dpi=90)


def main(argv: list[str] | None = None) -> int:
    args = arguments.rows(argv)
    torch.set_num_threads(args.threads)
    pipeline = shipped.load_pipeline()
    labels = torch.stack([drawings.parse_caption(text) for text in CAPTIONS])
    args.out.mkdir(parents=True, exist_ok=True)
    for name, (title, values) in tqdm(ROWS.items(), unit="row"):
        if args.only not in (None, name):
            continue
        pictures = {}
        for value, settings in values.items():
            with asag_guidance(pipeline, **SHOWN | settings):
                pictures[value] = shipped.sample(pipeline, labels, guidance_scale=CFG, steps=STEPS, seed=SEED)
        draw(args.out / f"{name}.png", title, pictures)
    return 0
