"""`python -m asag demo`: the same captions and seeds without guidance and with each attention guidance.

With --shapes on drawn shapes, here; otherwise on renderings, see `asag.lab.renderings.grid`.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from asag.hosts.diffusers_pipeline import asag_guidance
from asag.lab import arguments
from asag.lab.embedded import drawings, quality, shipped, shipped_mmdit
from asag.lab.embedded.classifier import Classifier, objects_right

# The small MMDiT without CFG, where its pictures often go wrong. Each method has the settings that were best for it in
# a search with other captions and other noise (research/asag, "Captions without CFG").
METHODS: dict[str, dict[str, Any]] = {
    "without": {},
    "PAG": {"method": "pag", "blocks": "joint.4", "scale": 0.5, "contrast": 0.0},
    "SEG": {"method": "seg", "blocks": "joint.1", "scale": 0.5, "contrast": 0.0},
    "ASAG": {"method": "asag", "blocks": "joint.1", "scale": 0.5, "strength": 0.25, "contrast": 0.0},
}
WRONG = "#d03030"
BATCH = 16
PICTURES = arguments.LEAST_PICTURES


def generate(
    pipeline: DiffusionPipeline, labels: Tensor, settings: dict[str, Any], bar: tqdm, **options: Any
) -> Tensor:
    """Pictures (B,3,32,32) in [-1,1] for labels (B,2,2), guided as `settings` say; no settings: without."""
    seed, parts = options.pop("seed"), []
    for number, part in enumerate(labels.split(BATCH)):
        with asag_guidance(pipeline, **settings) if settings else nullcontext():
            parts.append(shipped.sample(pipeline, part, seed=seed + number, folder=shipped_mmdit.MODEL, **options))
        bar.update(len(part))
    return torch.cat(parts)


def compare(results: dict[str, Tensor], drawn: drawings.Scenes, classifier: Classifier, path: Path) -> None:
    """The labelled grid: a row per caption, a column per method. Pictures that lack what was asked for, as the
    classifier reads them, have a red frame."""
    figure = Figure(figsize=(1.6 * len(results) + 1.6, 1.62 * PICTURES + 0.5), layout="constrained")
    grid = figure.subplots(PICTURES, len(results))
    for column, (name, images) in enumerate(results.items()):
        right = objects_right(classifier, images[:PICTURES], drawn.labels[:PICTURES])
        for row, picture in enumerate(shipped.to_pil(images[:PICTURES], scale=4)):
            axes = grid[row][column]
            axes.imshow(picture)
            axes.set(xticks=[], yticks=[])
            if not right[row]:
                for spine in axes.spines.values():
                    spine.set(color=WRONG, linewidth=3)
            if row == 0:
                axes.set_title(name, fontweight="bold")
            if column == 0:
                axes.set_ylabel(drawings.caption(drawn.labels[row]).replace(", ", "\n"), fontsize=8)
    figure.savefig(path, dpi=100)


def table(metrics: dict[str, dict[str, float]]) -> str:
    names = list(next(iter(metrics.values())))
    lines = [f"{'':12}" + "".join(f"{name.replace('_', ' '):>16}" for name in names)]
    lines += [f"{method:12}" + "".join(f"{values[name]:16.3f}" for name in names) for method, values in metrics.items()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    args = arguments.demo(argv)
    torch.set_num_threads(args.threads)
    if not args.shapes:
        from asag.lab.renderings.grid import draw

        return draw(args)
    pipeline, classifier = shipped_mmdit.load_pipeline(), shipped.load_classifier()
    pipeline.scheduler = shipped_mmdit.solver_of(pipeline.scheduler)
    drawn = quality.captions_for(args.samples, args.seed)
    options = {"guidance_scale": args.guidance_scale, "steps": args.steps, "seed": args.seed}
    results, metrics = {}, {}
    with tqdm(total=args.samples * len(METHODS), unit="picture") as bar:
        for name, settings in METHODS.items():
            bar.set_description(name)
            results[name] = generate(pipeline, drawn.labels, settings, bar, **options)
            metrics[name] = quality.measure(results[name], drawn, classifier)
    args.out.mkdir(parents=True, exist_ok=True)
    compare(results, drawn, classifier, args.out / "compare.png")
    record = {"samples": args.samples, **options, "methods": metrics}
    (args.out / "metrics.json").write_text(json.dumps(record, indent=2) + "\n")
    error = (0.25 / args.samples) ** 0.5
    print(f"\n{table(metrics)}\n")
    print(f"{args.samples} pictures per method: objects right has a standard error of up to {error:.3f}.")
    right = objects_right(classifier, drawn.images, drawn.labels).float().mean()
    print(f"The classifier reads {right:.1%} of the {args.samples} drawings themselves right.")
    print(f"Written: {args.out / 'compare.png'} and {args.out / 'metrics.json'}")
    return 0
