"""One pipeline's passes of its denoiser: which step a call is, which of its rows are conditional."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from asag.hosts.diffusers_call import Alphas, Shift, argument, token_grid_of
from asag.hosts.diffusers_noise import PassNoise
from asag.models.base import Family, UnsupportedModel
from asag.models.diffusers_mmdit import FluxTransformer
from asag.units import UnitScale


class Passes:
    """The calls that one pipeline makes of its denoiser, counted anew for each picture."""

    def __init__(self, pipe: Any, family: Family, unit: str) -> None:
        self.pipe = pipe
        self.is_flux = isinstance(family, FluxTransformer)
        self.unit = UnitScale(unit)
        self.steps = 0
        self.rows = 0
        self.timesteps: Tensor | None = None
        self.sample: Tensor | None = None
        self.timestep: Any = None
        self.index: int | None = None
        self.shift: Shift | None = None
        self.noise: PassNoise | None = None
        self.alphas = Alphas()
        self.ids: Tensor | None = None
        self.size: tuple[int, int] | None = None

    def repeats_step(self, args: tuple[Any, ...], kwargs: dict[str, Any], rescale: float) -> bool:
        """Whether the host predicts the same latents once more in the same step; those rows get the same shift.

        Flux does it for its negative prompt (the same tensor and timestep again), SD3 for skip-layer guidance. A
        scheduler that counts its steps is asked for the count: to compare timesteps makes the host wait for the device.
        """
        if kwargs.get("skip_layers") is not None:
            return True
        if not self.is_flux:
            return False
        sample, timestep = argument(args, kwargs, 0, "hidden_states"), argument(args, kwargs, 3, "timestep")
        index = getattr(self.pipe.scheduler, "step_index", None)
        repeats = sample is self.sample and self.timestep is not None
        if repeats:
            repeats = torch.equal(timestep, self.timestep) if index is None else index == self.index
        self.sample, self.timestep, self.index = sample, timestep, index
        if repeats and rescale and self.shift is not None:
            raise UnsupportedModel(
                f"rescale: {rescale} with a negative prompt in {type(self.pipe).__name__}; allowed: 0"
            )
        return repeats

    def latent_size(self, args: tuple[Any, ...] | list[Any], kwargs: dict[str, Any]) -> tuple[int, int] | None:
        """The latent image's (height, width); Flux's position ids, the same tensor in each step, are read once."""
        ids = argument(args, kwargs, 4, "img_ids") if self.is_flux else None
        if ids is None:
            return token_grid_of(args, kwargs).latent_size
        if ids is not self.ids:
            self.ids, self.size = ids, token_grid_of(args, kwargs).latent_size
        return self.size

    def next_step(self) -> tuple[int, int]:
        """This model call's number in the pipeline call, from 0, and how many there will be.

        Schedulers make new timesteps for each pipeline call, one for each model call.
        """
        timesteps = self.pipe.scheduler.timesteps
        total = getattr(self.pipe, "num_timesteps", None) or len(timesteps)
        if timesteps is not self.timesteps or self.steps >= total:
            self.timesteps, self.steps, self.rows = timesteps, 0, 0
            self.unit.begin_pass()
        self.shift = None
        self.steps += 1
        return self.steps - 1, total

    def conditional_rows(self, sample: Tensor) -> slice:
        """Where the conditional rows are; raises UnsupportedModel if the rows aren't [unconditional, conditional]."""
        total, half = sample.shape[0], sample.shape[0] // 2
        guided = getattr(self.pipe, "do_classifier_free_guidance", None)
        if self.is_flux or (guided is not None and not guided):
            return slice(0, total)
        # The same latents twice; looked at once per image, since that waits for the device.
        fits = guided and total == (self.rows or 2 * half)
        if not fits or (not self.rows and not torch.equal(sample[:half], sample[half:])):
            raise UnsupportedModel(
                f"pipe: {type(self.pipe).__name__} calls its denoiser on {total} rows that aren't the unconditional "
                "and the conditional ones of its images; allowed: pipelines with plain classifier-free guidance"
            )
        self.rows = total
        return slice(half, total)
