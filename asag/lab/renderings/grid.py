"""`python -m asag demo`: the same captions and noise without guidance, with CFG, with each method."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from asag.lab import arguments
from asag.lab.embedded.shipped import to_pil
from asag.lab.renderings import shipped
from asag.lab.renderings.judge import Verdict, load_judge, verdict
from asag.lab.renderings.sheet import CAPTIONS


class Method(NamedTuple):
    """A CFG scale (1: no CFG) and settings of the extension; none: without it."""

    cfg: float
    settings: dict[str, Any]


# What `python -m research choose` found for the UNet by a rule written before, see research/renderings.
METHODS = {
    "without": Method(1.0, {}),
    "CFG": Method(shipped.CFG, {}),
    "CFG + PAG": Method(shipped.CFG, {"method": "pag", "blocks": "all", "scale": 0.25, "unit": "cfg"}),
    "CFG + SEG": Method(shipped.CFG, {"method": "seg", "blocks": "mid", "scale": 0.25, "unit": "cfg"}),
    "CFG + ASAG": Method(shipped.CFG, {"method": "asag", "blocks": "in.3", "scale": 0.25, "unit": "cfg"}),
}
WRONG = "#d03030"
BATCH = 8
ROWS = arguments.LEAST_PICTURES


def asked(count: int) -> list[str]:
    """The fixed captions in their order, from the first again after the last."""
    return [CAPTIONS[number % len(CAPTIONS)] for number in range(count)]


def compare(results: dict[str, torch.Tensor], verdicts: dict[str, Verdict], texts: list[str], path: Path) -> None:
    """The labelled grid: a row per caption, a column per method. A red frame: the judge takes the picture for another
    name than the one that was asked for."""
    figure = Figure(figsize=(1.3 * len(results) + 1.4, 1.31 * ROWS + 0.4), layout="constrained")
    grid = figure.subplots(ROWS, len(results), squeeze=False)
    for column, (name, images) in enumerate(results.items()):
        for row, picture in enumerate(to_pil(images[:ROWS], scale=2)):
            axes = grid[row][column]
            axes.imshow(picture)
            axes.set(xticks=[], yticks=[])
            if not verdicts[name].name[row]:
                for spine in axes.spines.values():
                    spine.set(color=WRONG, linewidth=3)
            if row == 0:
                axes.set_title(name, fontweight="bold")
            if column == 0:
                axes.set_ylabel(texts[row].replace(" ", "\n", 1), fontsize=9)
    figure.savefig(path, dpi=100)


def table(metrics: dict[str, dict[str, float]]) -> str:
    names = list(next(iter(metrics.values())))
    lines = [f"{'':12}" + "".join(f"{name.replace('_', ' '):>14}" for name in names)]
    lines += [f"{method:12}" + "".join(f"{values[name]:14.3f}" for name in names) for method, values in metrics.items()]
    return "\n".join(lines)


def draw(args: Namespace) -> int:
    """What `args`, those of `arguments.demo`, ask for: the grid and the figures of `args.model` in `args.out`."""
    pipeline, captions = shipped.fast_pipeline(args.model), shipped.Captions(args.model)
    judge, texts = load_judge(args.model), asked(args.samples)
    results, verdicts = {}, {}
    with tqdm(total=args.samples * len(METHODS), unit="picture") as bar:
        for name, method in METHODS.items():
            bar.set_description(name)
            options = {"guidance_scale": method.cfg, "num_inference_steps": args.steps}
            parts = []
            for number in range(0, args.samples, BATCH):
                some, seed = texts[number : number + BATCH], args.seed + number
                parts.append(shipped.guided_sample(pipeline, captions, some, method.settings, seed=seed, **options))
                bar.update(len(some))
            results[name] = torch.cat(parts)
            verdicts[name] = verdict(judge, results[name], texts, judge.names)
    args.out.mkdir(parents=True, exist_ok=True)
    compare(results, verdicts, texts, args.out / "compare.png")
    metrics = {name: each.shares() for name, each in verdicts.items()}
    record = {"samples": args.samples, "seed": args.seed, "methods": metrics}
    (args.out / "metrics.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"\n{table(metrics)}\n")
    print(f"Of {args.samples} pictures per method. The judge chooses among {len(judge.names)} names.")
    print(f"Written: {args.out / 'compare.png'} and {args.out / 'metrics.json'}")
    return 0
