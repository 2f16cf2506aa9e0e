"""What a guided generation leaves for its figures: the push at every step, where it went, and what it did to attention.

Knows tensors only. Everything is kept on the CPU, as numbers and as one small map per pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from asag.blocks import Address
from asag.finite import is_finite
from asag.guidance import rms
from asag.precision import at_least_float32


@dataclass(frozen=True)
class TracedStep:
    """One guided model call: its number, from 0 over all passes; of each image what δ was multiplied by and the RMS of
    δ; whether δ is one of an earlier call, used again; and the RMS of CFG's own push, none in a step without CFG."""

    number: int
    scales: tuple[float, ...]
    sizes: tuple[float, ...]
    reused: bool = False
    cfg_sizes: tuple[float, ...] = ()

    @property
    def pushes(self) -> tuple[float, ...]:
        """Of each image the RMS of the push, s δ."""
        return tuple(scale * size for scale, size in zip(self.scales, self.sizes, strict=True))


@dataclass
class TracedPass:
    """One pass of the sampler, whose model calls have the numbers from `begins` on, `calls` of them as announced.

    `power` is the sum over the steps of the mean over channels of (s δ)², (images, height, width), in at least float32
    and on the CPU, at the latents' size; None where there is no such size. `entropies` has of each layer and run of it
    the normalised entropies of the ordinary and of the weakened map.
    """

    begins: int
    calls: int
    steps: list[TracedStep] = field(default_factory=list)
    power: Tensor | None = None
    entropies: dict[Address, list[tuple[float, float]]] = field(default_factory=dict)


class Trace:
    """Filled by the guidance while it runs: `begin_pass` before the first step of each pass of the sampler, then
    `add_entropies` and `add_step` in each guided step."""

    def __init__(self) -> None:
        self.passes: list[TracedPass] = []
        # Of each layer that wasn't weakened whole, the heads that were; several times where pictures or passes differ.
        self.heads: dict[Address, list[tuple[int, ...]]] = {}

    def begin_pass(self, calls: int) -> None:
        """A pass of the sampler begins, which announces `calls` model calls; their numbers go on from the last's."""
        begins = 0
        if self.passes:
            last = self.passes[-1]
            # Samplers that choose their own steps make more calls than they announce.
            begins = max(last.begins + last.calls, *(step.number + 1 for step in last.steps), 0)
        self.passes.append(TracedPass(begins, calls))

    def add_step(
        self,
        call: int,
        scale: float | Tensor,
        delta: Tensor,
        size: tuple[int, int] | None = None,
        reused: bool = False,
        cfg: Tensor | None = None,
    ) -> None:
        """Model call `call` of the pass, from 0, was guided.

        Args:
            scale: of all images, or of each, (images, 1, …).
            delta: δ of the noise or velocity, (images, channels, [frames,] height, width), or packed, (images, tokens,
                channels), any floating dtype.
            size: (height, width) of the image that packed tokens begin with, row by row; tokens after it are others.
            reused: whether δ is one of an earlier call.
            cfg: CFG's own push in that step, shaped as delta; None without CFG.
        """
        traced = self.passes[-1]
        delta = at_least_float32(delta.detach())
        shift = delta * scale
        # As the guidance does (asag.finite).
        shift = torch.where(is_finite(shift), shift, 0.0)
        scales = torch.as_tensor(scale, dtype=delta.dtype).flatten().expand(delta.shape[0])
        sizes, cfg_sizes = (() if each is None else tuple(rms(each).flatten().tolist()) for each in (delta, cfg))
        traced.steps.append(TracedStep(traced.begins + call, tuple(scales.tolist()), sizes, reused, cfg_sizes))
        power = _power(shift, size)
        if power is not None:
            before = traced.power
            traced.power = power if before is None or before.shape != power.shape else before + power

    def add_entropies(self, address: Address, ordinary: float, weakened: float) -> None:
        """A layer ran weakened: the normalised entropies of its ordinary map and of the one put in its place."""
        self.passes[-1].entropies.setdefault(address, []).append((ordinary, weakened))

    @property
    def steps(self) -> list[TracedStep]:
        """The guided steps of all passes, in order."""
        return [step for each in self.passes for step in each.steps]

    @property
    def images(self) -> int:
        """How many images were guided together; 0 when no step was."""
        return len(self.steps[-1].sizes) if self.steps else 0

    def heat(self, image: int) -> Tensor | None:
        """Where in an image the guidance acted in the last guided pass, (height, width): the root of the sum
        over its steps of the mean over channels of (s δ)². None where the latents are no image."""
        maps = [each.power for each in self.passes if each.steps]
        return None if not maps or maps[-1] is None else maps[-1][image].sqrt()

    def entropies(self) -> dict[Address, tuple[float, float]]:
        """Of each layer the mean normalised entropy of the ordinary map and of the weakened one, over the last guided
        pass; 0: each token attends to one other, 1: to all of them alike."""
        for each in reversed(self.passes):
            if each.steps and each.entropies:
                return {
                    address: tuple(sum(column) / len(pairs) for column in zip(*pairs, strict=True))
                    for address, pairs in each.entropies.items()
                }
        return {}


def entropy(rows: Tensor) -> float:
    """The mean entropy of rows of attention maps, (…, keys), divided by log(keys): 0 to 1, which is uniform."""
    keys = rows.shape[-1]
    if keys == 1:
        return 1.0
    tiny = torch.finfo(rows.dtype).tiny
    return float(-(rows * rows.clamp_min(tiny).log()).sum(dim=-1).mean() / math.log(keys))


def _power(shift: Tensor, size: tuple[int, int] | None) -> Tensor | None:
    """The mean square over channels and frames, (images, height, width) on the CPU."""
    square = shift.square()
    if square.ndim == 3:
        if size is None or math.prod(size) > square.shape[1]:
            return None
        image: Tensor = square.mean(dim=2)[:, : math.prod(size)].unflatten(1, size)
        return image.cpu()
    return square.mean(dim=tuple(range(1, square.ndim - 2))).cpu()
