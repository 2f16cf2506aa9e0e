"""What the embedded model is judged by: objects right, contrast, and a contact sheet for the eye."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw

from asag.lab import arguments
from asag.lab.embedded import drawings, shipped, shipped_mmdit
from asag.lab.embedded.classifier import Classifier, objects_right

_BATCH = 64


def contrast(images: torch.Tensor) -> float:
    """Mean over pictures (B,3,32,32) in [-1,1] of the standard deviation of one picture's 3072 values.

    Per picture, so that it measures how strongly objects stand out, not how much pictures differ.
    """
    return float(images.flatten(1).std(1).mean())


def captions_for(count: int, seed: int) -> drawings.Scenes:
    """The drawings whose captions the samples are asked for; their contrast is what samples should have."""
    return drawings.draw(count, torch.Generator().manual_seed(seed))


def sample_many(pipeline: DiffusionPipeline, labels: torch.Tensor, seed: int, **options: Any) -> torch.Tensor:
    """`shipped.sample` in batches: (B,3,32,32) for labels (B,2,2)."""
    parts = enumerate(labels.split(_BATCH))
    return torch.cat([shipped.sample(pipeline, part, seed=seed + i, **options) for i, part in parts])


def evaluate(
    pipeline: DiffusionPipeline,
    classifier: Classifier,
    n: int,
    guidance_scale: float = 2.0,
    steps: int = 25,
    seed: int = 0,
    **options: Any,
) -> dict[str, float]:
    """Samples for the captions of n fresh drawings; `options` go to `shipped.sample`.

    objects_right: share with exactly the asked objects; contrast: see `contrast`; contrast_ratio: that over
    the contrast of the very drawings that the captions come from.
    """
    drawn = captions_for(n, seed)
    options |= {"guidance_scale": guidance_scale, "steps": steps, "seed": seed}
    return measure(sample_many(pipeline, drawn.labels, **options), drawn, classifier)


def measure(images: torch.Tensor, drawn: drawings.Scenes, classifier: Classifier) -> dict[str, float]:
    """The figures of `evaluate` for given samples of the captions of `drawn`."""
    right = objects_right(classifier, images, drawn.labels)
    return {
        "objects_right": float(right.float().mean()),
        "contrast": contrast(images),
        "contrast_ratio": contrast(images) / contrast(drawn.images),
    }


def contact_sheet(
    images: torch.Tensor,
    labels: torch.Tensor,
    path: Path,
    right: torch.Tensor | None = None,
    columns: int = 8,
    scale: int = 4,
) -> None:
    """A PNG of pictures (B,3,32,32), each over its caption; captions of wrong ones (B,) are red."""
    side, text = drawings.SIZE * scale, 26
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (side + 4), rows * (side + text + 4)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, picture in enumerate(shipped.to_pil(images, scale)):
        x, y = i % columns * (side + 4) + 2, i // columns * (side + text + 4) + 2
        sheet.paste(picture, (x, y))
        colour = "black" if right is None or right[i] else "red"
        lines = drawings.caption(labels[i]).replace(", ", "\n")
        pen.multiline_text((x, y + side), lines, fill=colour, spacing=0)
    sheet.quantize(128).save(path, optimize=True)


def main(argv: list[str] | None = None) -> int:
    args = arguments.quality(argv)
    torch.set_num_threads(args.threads)
    if (args.model / "words.json").exists():
        from asag.lab.renderings import quality as renderings

        return renderings.measure_model(args)
    kind = shipped_mmdit if (args.model / "transformer").exists() else shipped
    pipeline = kind.load_pipeline(folder=args.model)
    classifier = shipped.load_classifier()
    drawn = captions_for(args.samples, args.seed)
    for guidance in args.guidance:
        options = {"guidance_scale": guidance, "steps": args.steps, "folder": args.model}
        images = sample_many(pipeline, drawn.labels, seed=args.seed, **options)
        figures = measure(images, drawn, classifier)
        head = f"CFG {guidance:g}, {args.steps} steps, {args.samples} samples:"
        print(head, *(f"{name} {value:.3f}" for name, value in figures.items()), flush=True)
    if args.sheet:
        args.sheet.parent.mkdir(parents=True, exist_ok=True)
        right = objects_right(classifier, images[:48], drawn.labels[:48])
        contact_sheet(images[:48], drawn.labels[:48], args.sheet, right)
    return 0
