"""A guided request in the double of a WebUI, and what the definition says of its steps."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from asag.hosts.generation import RUN, arm
from asag.settings import AsagSettings
from tests.hosts.reference import Definition, Prompts
from tests.support import snapshot


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The prompts of two images: plain, each of two parts (AND, a negative weight), and the second alone of two parts.
PLAIN = [Prompts([random(7, 24, seed=1 + image)], [1.0], random(7, 24, seed=3 + image)) for image in range(2)]
PARTS = Prompts([random(7, 24, seed=5), random(7, 24, seed=6)], [0.8, -0.4], random(7, 24, seed=7))
AND, MIXED = [PARTS, Prompts(PARTS.parts[::-1], PARTS.weights, PLAIN[0].negative)], [PLAIN[0], PARTS]
# What the model is given in the steps of a pass, and of a hires pass.
FIRST = [random(2, 4, 4, 6, seed=10 + step) for step in range(2)]
LATER = FIRST + [random(2, 4, 4, 6, seed=30 + step) for step in range(2)]
HIRES = [random(2, 4, 6, 4, seed=20 + step) for step in range(2)]


@torch.no_grad()
def guided(host: Any, options: Any, **settings: Any) -> list[Tensor]:
    host.options = options
    options.passes = options.passes or [FIRST]
    chosen = AsagSettings.from_mapping({"enabled": True, "scale": 2.0, **settings})
    arm(host.adapter, host.p, chosen, unguided=lambda: None)
    before = snapshot(host.network())
    results = host.p.sample()
    assert snapshot(host.network()) == before
    assert not hasattr(host.p, RUN)
    assert not host.callbacks.swallowed
    return results


def expected(
    host: Any, scales: list[list[float]], blocks: tuple[str, ...] = ("mid", "mid"), maps: Any = None, **more: Any
) -> Any:
    """The guided and the unconditional noise, and the noise without ASAG, of every step with these scales. `maps`: an
    attention map for each image."""
    options, steps = host.options, []
    cfg = options.cfg / 12.5 if getattr(options, "cfg_plus_plus", False) else options.cfg
    predicts = "velocity" if getattr(options, "denoiser", "") == "velocity" else "noise"
    for latents, pass_scales, block in zip(options.passes, scales, blocks, strict=False):
        images = [
            Definition(
                host.unet,
                each,
                cfg,
                block,
                predicts=predicts,
                **more,
                **({"attention_map": maps[image]} if maps else {}),
            )
            for image, each in enumerate(host.prompts)
        ]
        for number, (x, scale) in enumerate(zip(latents, pass_scales, strict=True)):
            for image in images:
                image.cfg = 1.0 if number in getattr(options, "without_uncond", ()) else cfg
            parts = [image.step(own, options.timesteps[number], scale) for own, image in zip(x, images, strict=True)]
            steps.append([torch.stack(each) for each in zip(*parts, strict=True)])
    return [list(each) for each in zip(*steps, strict=True)]


def assert_steps(host: Any, found: list[Tensor], scales: list[list[float]], **more: Any) -> None:
    """The steps are those of the definition, to 1e-6 of what ASAG did to them: a wrong sign is an error of 2."""
    noise, _, plain = expected(host, scales, **more)
    assert len(found) == len(noise)
    for result, wanted, without in zip(found, noise, plain, strict=True):
        push = (wanted - without).abs().max()
        assert (result - wanted).abs().max() <= 1e-6 * (push or 1e-6)


class ConvolvedRows:
    """While entered: how many rows each convolution with `weight` had. Counted below the model: beside a hook in it
    nothing is shared. Not by a TorchDispatchMode, under which torch 2.1 makes no subclasses of tensors."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.rows: list[int] = []
        self.convolve = F.conv2d
        self.patch = patch.object(F, "conv2d", self.count)

    def __enter__(self) -> ConvolvedRows:
        self.patch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.patch.stop()

    def count(self, given: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        if weight is self.weight:
            self.rows.append(given.shape[0])
        return self.convolve(given, weight, *rest)
