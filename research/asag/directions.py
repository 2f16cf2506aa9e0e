"""Where each method pushes: how alike their δ are, and how much of each is contrast alone.

`python -m research directions --model unet` samples without guidance, and at every step looks at δ, the
prediction minus the weakened one, of every method in the default block and of ASAG in every block, on the same latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from asag.hosts.diffusers_call import Alphas, picture_of, token_grid_of, velocity_of_grey
from asag.hosts.diffusers_models import FAMILIES
from asag.lab.embedded.shipped import start_noise
from asag.models.base import family_of
from asag.models.diffusers_unet import DiffusersUnet
from asag.operators import make_operator
from asag.perturb import choose_layers, perturbed
from research import arguments
from research.asag.cells import METHODS, baseline
from research.asag.sampling import Sampler, captions, trained
from research.asag.sweeps import BLOCKS
from research.lines import Line, write_lines

_PICTURES, _SEED = 48, 102
Pushes = dict[tuple[str, str], Tensor]  # by method and block


@contextmanager
def watched(pipeline: Any, model: nn.Module, pairs: list[tuple[str, str]]) -> Iterator[list[tuple[Tensor, Pushes]]]:
    """While open, each call adds the picture that it predicts, up to its size, and, for each method and block of
    `pairs`, δ in pictures' direction: a velocity points away from the picture, so it's the weakened one minus the
    normal one."""
    family = family_of(model, FAMILIES)
    seen: list[tuple[Tensor, Pushes]] = []
    alphas = Alphas()

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        pushes, token_grid = {}, token_grid_of(args, kwargs)
        for method, block in pairs:
            with perturbed(choose_layers(model, family, block), family, make_operator(method), token_grid):
                pushes[method, block] = model.forward(*args, **kwargs)[0] - output[0]
        if isinstance(family, DiffusersUnet):
            picture = picture_of(pipeline.scheduler, alphas, args, kwargs, output[0])
        else:
            picture = velocity_of_grey(args, kwargs, output[0], 1000) - output[0]
        seen.append((picture, pushes))

    handle = model.register_forward_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def cosine(a: Tensor, b: Tensor) -> float:
    """Mean over images of the cosine between (images, …)."""
    return float(nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).mean())


def compare(push: Tensor, asag: Tensor, picture: Tensor) -> dict[str, float]:
    """Of a push (images, …): its RMS; its cosine to the one of ASAG; to the picture less its mean, along which a push
    is contrast alone; and to the one of ASAG once contrast has been taken out of both."""
    contrast = picture - picture.mean(dim=tuple(range(1, picture.ndim)), keepdim=True)
    unit = nn.functional.normalize(contrast.flatten(1))

    def beyond(push: Tensor) -> Tensor:
        flat = push.flatten(1)
        return flat - (flat * unit).sum(1, keepdim=True) * unit

    found = {
        "size": float(push.square().mean().sqrt()),
        "to_asag": cosine(push, asag),
        "contrast": cosine(push, contrast),
        "to_asag_beyond": cosine(beyond(push), beyond(asag)),
    }
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def measure(sampler: Sampler, model: str, pictures: int = _PICTURES, steps: int | None = None) -> list[Line]:
    """A line for each step, and each method in the default block and block for ASAG, without captions."""
    pipeline = sampler.pipeline(model)
    run = baseline(model, False, steps=steps)
    pairs = [(method, "auto") for method in METHODS] + [("asag", block) for block in BLOCKS[model]]
    network = getattr(pipeline, "unet", None) or pipeline.transformer
    with torch.no_grad(), watched(pipeline, network, pairs) as seen:
        sampler.batch(run, captions(pictures), start_noise(pictures, _SEED))
    about = {"plan": "directions", "model": model, "steps": run.steps, "pictures": pictures}
    return [
        about | {"step": step, "method": method, "block": block} | compare(push, pushes["asag", "auto"], picture)
        for step, (picture, pushes) in enumerate(seen)
        for (method, block), push in pushes.items()
    ]


def main(argv: list[str] | None = None) -> int:
    args = arguments.directions(argv)
    if args.model not in trained():
        args.error(f"--model: {args.model}, which is not trained yet; allowed: {', '.join(trained())}")
    torch.set_num_threads(args.threads)
    lines = measure(Sampler(), args.model)
    write_lines(args.out / f"directions-{args.model}.jsonl", lines)
    print(f"{len(lines)} lines: {args.out / f'directions-{args.model}.jsonl'}")
    return 0
