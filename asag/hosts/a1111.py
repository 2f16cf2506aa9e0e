"""AUTOMATIC1111 1.10: one guided generation, driven by the CFG denoiser's callbacks.

Source: modules/sd_samplers_cfg_denoiser.py. In a step the `cfg_denoiser` callback comes first, then `inner_model` runs
on all rows, in one call or several, then comes the `cfg_denoised` callback, in which edits of `params.x` in place
count.
"""

from __future__ import annotations

from typing import Any

import torch
from modules import script_callbacks
from torch import Tensor, nn

from asag.guidance import keep_contrast, mean_rows, rescale_factor, shift_rows
from asag.hosts.a1111_control import fixes_rows, references_spared, remembers
from asag.hosts.a1111_model import FAMILY, is_timestep_sampler, rows_of, unet
from asag.hosts.a1111_step import Step
from asag.hosts.generation import GuidedRun, Refused, run_of
from asag.hosts.loaded import checkpoints
from asag.models.base import Family
from asag.perturb import choose_layers
from asag.settings import AsagSettings


class A1111Run(GuidedRun):
    """Guides by the row-shift rule, in place, between the host's pass and its combination of the rows."""

    def open_step(self, params: Any, scale: float, blocks: str) -> Step:
        rows = rows_of(params.text_cond), rows_of(params.text_uncond)
        network = unet()
        layers = choose_layers(network, FAMILY, blocks)
        self.reuse.look_at(network)
        if remembers(params.denoiser.p):
            self.reuse.give_up("a unit makes the model remember what it sees (reference)")
        return Step(params.denoiser, scale, *rows, network, layers, FAMILY, self.operator, self.reuse)

    def entrance(self, denoiser: Any) -> nn.Module:
        return denoiser.inner_model

    def on_cfg_denoised(self, params: Any) -> None:
        """After the host's pass: the perturbed pass on the conditional rows, and the row shift, in place."""
        step, self.step = self.step, None
        if step is None:
            return
        step.remove()
        with self.errors_told():
            self._guide(params.x, step)
            self.guided_calls += 1

    def _guide(self, rows: Tensor, step: Step) -> None:
        denoiser = step.denoiser
        weights = [[part.weight for part in parts] for parts in denoiser.sampler.sampler_extra_args["cond"].batch]
        if sum(map(len, weights)) != step.cond_rows or step.recorded_rows < step.cond_rows:
            raise Refused(
                f"ASAG: {step.cond_rows} conditional rows of {step.recorded_rows} run, {weights} expected; another "
                "extension changed what the model is given, and ASAG can't guide that",
                500,
            )
        with references_spared(denoiser.p, step.layers):
            perturbed_rows = step.predict(whole_calls=fixes_rows(denoiser.p))
        cond = rows[: step.cond_rows]
        delta = mean_rows(cond - perturbed_rows, weights)
        if self.settings.contrast < 1:
            delta = keep_contrast(delta, mean_rows(_pictures(cond, step), weights), self.settings.contrast)
        # The timestep samplers predict noise, whose δ is free of σ already.
        sigma = 1.0 if is_timestep_sampler(step.inner_model) else step.calls[0].sigma[0]
        shift = delta * self.scale_of(step.scale, delta, sigma)
        # Conditional rows image by image, then a block of one row per image: uncond, or two with InstructPix2Pix.
        images = [image for image, parts in enumerate(weights) for _ in parts]
        images += list(range(step.images)) * ((rows.shape[0] - step.cond_rows) // step.images)
        reference = rows[[images.index(image) for image in range(step.images)]].clone()
        shift_rows(rows, shift, images)
        if self.settings.rescale:
            guided = self._combined(rows, weights, step)
            factor = rescale_factor(reference, guided, self.settings.rescale)
            rows *= factor[images]

    def _combined(self, rows: Tensor, weights: list[list[float]], step: Step) -> Tensor:
        """What the host will make of the rows, (images, …): rows scaled by a factor give it scaled by the factor."""
        denoiser = step.denoiser
        scale = denoiser.sampler.sampler_extra_args["cond_scale"] * denoiser.cond_scale_miltiplier
        if step.recorded_rows == step.cond_rows:
            scale = 1.0
        if rows.shape[0] - step.cond_rows > step.images:
            return denoiser.combine_denoised_for_edit_model(rows, scale)
        indices = iter(range(step.cond_rows))
        conds_list = [[(next(indices), weight) for weight in parts] for parts in weights]
        return denoiser.combine_denoised(rows, conds_list, rows[-step.images :], scale)


def _pictures(cond: Tensor, step: Step) -> Tensor:
    """What the conditional rows stand for, up to their size: denoised pictures are that themselves, of noise at a
    timestep it is x - √(1-ᾱ) ε."""
    if not is_timestep_sampler(step.inner_model):
        return cond
    x = torch.cat([call.x for call in step.calls])[: len(cond)]
    alphas = step.inner_model.inner_model.alphas_cumprod
    return x - (1 - alphas[step.calls[0].sigma[0].long()]).sqrt() * cond


class A1111:
    """The host, for the script. Registers the two callbacks that the host calls in every step of every generation."""

    def __init__(self) -> None:
        self.current: A1111Run | None = None
        script_callbacks.on_cfg_denoiser(self._cfg_denoiser)
        script_callbacks.on_cfg_denoised(self._cfg_denoised)

    def run(self, settings: AsagSettings) -> A1111Run:
        return A1111Run(settings)

    def model(self) -> tuple[nn.Module, Family]:
        return unet(), FAMILY

    def checkpoints(self) -> tuple[str, str | None]:
        return checkpoints()

    def _cfg_denoiser(self, params: Any) -> None:
        self.current = run_of(params.denoiser)
        if self.current is not None:
            self.current.on_cfg_denoiser(params)

    def _cfg_denoised(self, params: Any) -> None:
        run, self.current = self.current, None
        if run is not None:
            run.on_cfg_denoised(params)
