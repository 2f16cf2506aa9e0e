"""How large the push is beside CFG's own, in each unit of the scale: `python -m research units --model unet`.

Samples with CFG alone, at several CFG scales. At every step it looks at δ, the prediction minus the weakened one, of
every method in every block, and at CFG's own push, on the same latents. What the units make of these sizes is in
unit_spread.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from asag.guidance import rms
from asag.hosts.diffusers_call import token_grid_of
from asag.hosts.diffusers_models import FAMILIES
from asag.lab.embedded.shipped import start_noise
from asag.models.base import family_of
from asag.operators import METHODS, make_operator
from asag.perturb import choose_layers, perturbed
from research import arguments
from research.asag.cells import baseline
from research.asag.sampling import Sampler, captions, trained
from research.asag.sweeps import BLOCKS
from research.asag.unit_spread import limits, summaries
from research.lines import Line, read_lines, write_lines

CFG_SCALES = (1.5, 2.0, 4.0)
_PICTURES, _SEED = 8, 103
Sizes = dict[tuple[str, str], list[float]]  # by method and block, of each picture


@contextmanager
def watched(model: nn.Module, cfg_scale: float, pairs: list[tuple[str, str]]) -> Iterator[list[Sizes]]:
    """While open, each call of the model on [unconditional, conditional] rows adds the RMS of δ of each method and
    block of `pairs`, and under ("cfg", "") that of CFG's own push."""
    family = family_of(model, FAMILIES)
    seen: list[Sizes] = []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        uncond, cond = output[0].chunk(2)
        sizes = {("cfg", ""): _of_each((cfg_scale - 1) * (cond - uncond))}
        for method, block in pairs:
            layers = choose_layers(model, family, block)
            with perturbed(layers, family, make_operator(method), token_grid_of(args, kwargs)):
                weakened = model.forward(*args, **kwargs)[0].chunk(2)[1]
            sizes[method, block] = _of_each(cond - weakened)
        seen.append(sizes)

    handle = model.register_forward_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def _of_each(tensor: Tensor) -> list[float]:
    return [float(f"{size:.4g}") for size in rms(tensor).flatten().tolist()]


def measure(sampler: Sampler, model: str, pictures: int = _PICTURES, steps: int | None = None) -> list[Line]:
    """A line for each CFG scale and each method and block, and one for CFG itself: sizes by step and picture."""
    pipeline = sampler.pipeline(model)
    network = getattr(pipeline, "unet", None) or pipeline.transformer
    pairs = [(method, block) for block in BLOCKS[model] for method in METHODS]
    lines = []
    for scale in CFG_SCALES:
        run = baseline(model, True, steps=steps, guidance_scale=scale)
        with torch.no_grad(), watched(network, scale, pairs) as seen:
            sampler.batch(run, captions(pictures), start_noise(pictures, _SEED))
        about = {"plan": "units", "model": model, "steps": run.steps, "pictures": pictures, "guidance_scale": scale}
        for method, block in [("cfg", ""), *pairs]:
            lines.append(about | {"method": method, "block": block, "sizes": [each[method, block] for each in seen]})
    return lines


def main(argv: list[str] | None = None) -> int:
    args = arguments.units(argv)
    if args.model not in trained():
        args.error(f"--model: {args.model}, which is not trained yet; allowed: {', '.join(trained())}")
    torch.set_num_threads(args.threads)
    lines = measure(Sampler(), args.model)
    lines += [*summaries(lines), *limits(read_lines(args.out / f"blocks-{args.model}.jsonl"), lines)]
    write_lines(args.out / f"units-{args.model}.jsonl", lines)
    print(f"{len(lines)} lines: {args.out / f'units-{args.model}.jsonl'}")
    return 0
