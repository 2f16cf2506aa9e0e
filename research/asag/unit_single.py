"""One scale for every place, sampled in each unit: `python -m research single --model unet`.

A place is a CFG scale, a block and a method. Each has captions and noise of its own, the same in all units, and those
of CFG alone beside them. A run that was stopped goes on: descriptions of pictures are kept as `evaluate` keeps them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from asag.lab.arguments import MODELS
from asag.units import UNITS
from research import arguments
from research.asag.cells import baseline, guided
from research.asag.descriptions import Store
from research.asag.evaluate import Evaluation, compared
from research.asag.sampling import Part, Run, trained
from research.asag.unit_places import Place, ones, places, single
from research.asag.unit_spread import rounded
from research.lines import Line, read_lines, write_lines

# Fewer than the models' own: they are nearly three thousand sets of pictures.
STEPS = 6
_PICTURES, _SEED, _CAPTIONS_SEED = 8, 1050, 24_000


def common(folder: Path, push: float) -> dict[str, float]:
    """The scale of each unit, one for all places of both models."""
    found = [each for model in MODELS for each in ones(read_lines(folder / f"units-{model}.jsonl")).values()]
    return single(found, push)


def part_of(number: int) -> Part:
    """The captions and noise of the place with that number."""
    return Part(_SEED + number, 0, _PICTURES, _CAPTIONS_SEED + number)


def runs(model: str, place: Place, scales: dict[str, float]) -> dict[str, Run]:
    """CFG alone, under "", and each unit at its scale."""
    cfg_scale, block, method = place
    base = baseline(model, True, guidance_scale=cfg_scale, steps=STEPS)
    way = {"method": method, "blocks": block}
    return {"": base} | {unit: guided(base, {**way, "unit": unit, "scale": scales[unit]}) for unit in UNITS}


def measure(evaluation: Evaluation, model: str, number: int, push: float, scales: dict[str, float]) -> Line:
    """A line of the place with that number: how far each unit's pictures are from those of CFG alone, (pictures,) by
    unit, as `diversity` counts it: the RMS difference of the mean colours of 4 x 4 cells."""
    place, part = places(model)[number], part_of(number)
    of = runs(model, place, scales)
    for run in of.values():
        if not evaluation.store.has(run, part):
            evaluation.sample(run, part)
    layouts = {name: evaluation.store.read(run, [part])["layout"] for name, run in of.items()}
    changes = {unit: (layouts[unit] - layouts[""]).square().mean(1).sqrt().tolist() for unit in UNITS}
    names = dict(zip(("guidance_scale", "block", "method"), place, strict=True))
    about = {"plan": "unit-single", "model": model, "steps": STEPS, "pictures": part.pictures, "seed": part.seed}
    rounds = {unit: [rounded(each) for each in values] for unit, values in changes.items()}
    return about | names | {"push": push, "scales": scales, "changes": rounds}


def pooled(evaluation: Evaluation, model: str, push: float, scales: dict[str, float]) -> list[Line]:
    """A line for each unit: the metrics of the pictures of all places together, and the differences to CFG alone and to
    the paper's unit."""
    found: dict[str, list[dict[str, Tensor]]] = {}
    for number, place in enumerate(places(model)):
        for name, run in runs(model, place, scales).items():
            found.setdefault(name, []).append(evaluation.store.read(run, [part_of(number)]))
    of = {
        name: evaluation.metrics()({kind: torch.cat([each[kind] for each in parts]) for kind in parts[0]}, 1)
        for name, parts in found.items()
    }
    about = {"plan": "unit-single", "model": model, "method": "all", "push": push, "places": len(found[""])}
    about["samples"] = _PICTURES * len(found[""])
    return [
        about
        | {
            "unit": unit,
            "scale": scales[unit],
            "metrics": compared(of[unit], {"baseline": of[""], "paper": of["paper"]}),
        }
        for unit in UNITS
    ]


def main(argv: list[str] | None = None) -> int:
    args = arguments.single(argv)
    if args.model not in trained():
        args.error(f"--model: {args.model}, which is not trained yet; allowed: {', '.join(trained())}")
    torch.set_num_threads(args.threads)
    path = args.out / f"unit-single-{args.model}.jsonl"
    lines = read_lines(path)
    there = {(line["push"], line.get("seed", line.get("unit"))) for line in lines}
    evaluation = Evaluation(Store(args.store))
    for push in args.pushes:
        scales = common(args.out, push)
        for number in tqdm(range(len(places(args.model))), desc=f"{args.model} {push:g}"):
            if (push, part_of(number).seed) not in there:
                lines.append(measure(evaluation, args.model, number, push, scales))
                write_lines(path, lines)
        if not {(push, unit) for unit in UNITS} <= there:
            lines = [line for line in lines if "changes" in line or line["push"] != push]
            lines += pooled(evaluation, args.model, push, scales)
            write_lines(path, lines)
    print(f"{len(lines)} lines: {path}")
    return 0
