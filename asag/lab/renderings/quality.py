"""`python -m asag quality` of a model of renderings: named right, group right, and a sheet for the eye."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

import torch

from asag.lab.renderings import shipped
from asag.lab.renderings.judge import Judge, load_judge, verdict
from asag.lab.renderings.names import held_out
from asag.lab.renderings.sheet import contact_sheet

_SHOWN = 48


def asked_names(judge: Judge, count: int, seed: int, left_out: bool) -> tuple[list[str], list[str]]:
    """`count` names to ask for, in an order of the seed, each again only after all others; and all that are allowed.

    Those of the training are judged among themselves, those that were left out of it among all.
    """
    held = held_out(judge.names)
    learnt = [name for name in judge.names if name not in held]
    pool = sorted(held) if left_out else learnt
    generator = torch.Generator().manual_seed(seed)
    rounds = max(1, -(-count // max(len(pool), 1)))
    order = torch.cat([torch.randperm(len(pool), generator=generator) for _ in range(rounds)])[:count]
    return [pool[row] for row in order], judge.names if left_out else learnt


def measure_model(args: Namespace) -> int:
    """Prints a line for each guidance; `args` are those of `arguments.quality`."""
    judge = load_judge(args.judge or args.model)
    pipeline, captions = shipped.fast_pipeline(args.model), shipped.Captions(args.model)
    asked, among = asked_names(judge, args.samples, args.seed, args.held_out)
    for guidance in args.guidance:
        options = {"guidance_scale": guidance, "num_inference_steps": args.steps, "half_size": args.half_size}
        images = shipped.sample(pipeline, captions, asked, seed=args.seed, **options)
        found = verdict(judge, images, asked, among)
        head = f"CFG {guidance:g}, {args.steps} steps, {args.samples} samples, 1 of {len(among)}:"
        print(head, *(f"{name} {share:.3f}" for name, share in found.shares().items()), flush=True)
    if args.sheet:
        _draw(images, asked, (~found.name).tolist(), args)
    return 0


def _draw(images: torch.Tensor, asked: Sequence[str], wrong: list[bool], args: Namespace) -> None:
    contact_sheet(images[:_SHOWN], asked[:_SHOWN], args.sheet, wrong[:_SHOWN])
