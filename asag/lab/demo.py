"""`python -m asag demo`: the same captions and seeds with CFG alone and with CFG and each attention guidance."""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from asag.hosts.diffusers import asag_guidance
from asag.lab import papers
from asag.lab.embedded import drawings, quality, shipped
from asag.lab.embedded.classifier import objects_right

# At the scales of the papers, each in the middle block.
METHODS: dict[str, dict[str, Any]] = {
    "CFG": {},
    "CFG + PAG": {"method": "pag", "scale": papers.SCALES["pag"]},
    "CFG + SEG": {"method": "seg", "scale": papers.SCALES["seg"]},
    "CFG + ASAG": {"method": "asag", "scale": papers.SCALES["asag"]},
}
BATCH = 16
PICTURES = 8


def generate(
    pipeline: DiffusionPipeline, labels: Tensor, settings: dict[str, Any], bar: tqdm, **options: Any
) -> Tensor:
    """Pictures (B,3,32,32) in [-1,1] for labels (B,2,2), guided as `settings` say; no settings: CFG alone."""
    seed, parts = options.pop("seed"), []
    for number, part in enumerate(labels.split(BATCH)):
        with asag_guidance(pipeline, blocks="mid", **settings) if settings else nullcontext():
            parts.append(shipped.sample(pipeline, part, seed=seed + number, **options))
        bar.update(len(part))
    return torch.cat(parts)


def compare(results: dict[str, Tensor], drawn: drawings.Scenes, path: Path) -> None:
    """The labelled grid: a row per caption, a column per method."""
    figure = Figure(figsize=(1.6 * len(results) + 1.6, 1.62 * PICTURES + 0.5), layout="constrained")
    grid = figure.subplots(PICTURES, len(results))
    for column, (name, images) in enumerate(results.items()):
        for row, picture in enumerate(shipped.to_pil(images[:PICTURES], scale=4)):
            axes = grid[row][column]
            axes.imshow(picture)
            axes.set(xticks=[], yticks=[])
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
    parser = argparse.ArgumentParser(prog="python -m asag demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for compare.png and metrics.json")
    parser.add_argument("--samples", type=int, default=64, help=f"pictures per method, at least {PICTURES}")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=2.0, help="of classifier-free guidance")
    parser.add_argument("--seed", type=int, default=7)
    # One thread: on so small a model a second gains little, and costs much where something else is running.
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    if args.samples < PICTURES:
        parser.error(f"--samples: {args.samples}; allowed: at least {PICTURES}")
    torch.set_num_threads(args.threads)
    pipeline, classifier = shipped.load_pipeline(), shipped.load_classifier()
    drawn = quality.captions_for(args.samples, args.seed)
    options = {"guidance_scale": args.guidance_scale, "steps": args.steps, "seed": args.seed}
    results, metrics = {}, {}
    with tqdm(total=args.samples * len(METHODS), unit="picture") as bar:
        for name, settings in METHODS.items():
            bar.set_description(name)
            results[name] = generate(pipeline, drawn.labels, settings, bar, **options)
            metrics[name] = quality.measure(results[name], drawn, classifier)
    args.out.mkdir(parents=True, exist_ok=True)
    compare(results, drawn, args.out / "compare.png")
    record = {"samples": args.samples, **options, "methods": metrics}
    (args.out / "metrics.json").write_text(json.dumps(record, indent=2) + "\n")
    error = (0.25 / args.samples) ** 0.5
    print(f"\n{table(metrics)}\n")
    print(f"{args.samples} pictures per method: objects right has a standard error of up to {error:.3f}.")
    right = objects_right(classifier, drawn.images, drawn.labels).float().mean()
    print(f"The classifier reads {right:.1%} of the {args.samples} drawings themselves right.")
    print(f"Written: {args.out / 'compare.png'} and {args.out / 'metrics.json'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
