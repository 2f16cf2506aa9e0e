"""AUTOMATIC1111 1.10: one guided generation, driven by the CFG denoiser's callbacks.

Source: modules/sd_samplers_cfg_denoiser.py. In a step the `cfg_denoiser` callback comes first, then `inner_model` runs
on all rows, in one call or several, then comes the `cfg_denoised` callback, in which edits of `params.x` in place
count, then the host combines the rows, and then comes the `cfg_after_cfg` callback, in which `params.x` is the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import ref

from modules import script_callbacks
from torch import Tensor, nn

from asag.guidance import cfg_push, keep_contrast, mean_rows, picked_rows, rescale_factor, shift_rows
from asag.hosts.a1111_control import fixes_rows, references_spared, remembers
from asag.hosts.a1111_model import FAMILY, is_timestep_sampler, rows_of, unet
from asag.hosts.a1111_step import A1111Step, SeenStep
from asag.hosts.generation import GuidedRun, run_of
from asag.hosts.loaded import checkpoints, loaded_model
from asag.hosts.refused import Refused
from asag.models.base import Family
from asag.noise import NoiseSchedule
from asag.perturb import choose_layers
from asag.settings import AsagSettings


class A1111Run(GuidedRun):
    """Guides by the row-shift rule, in place, between the host's pass and its combination of the rows."""

    def __init__(self, settings: AsagSettings) -> None:
        super().__init__(settings)
        self.rescaling: Rescaling | None = None
        self.noise_of: tuple[nn.Module, NoiseSchedule] | None = None
        self.checkpoint: Any = None

    def open_step(self, params: Any, scale: float, blocks: str) -> SeenStep:
        rows = rows_of(params.text_cond), rows_of(params.text_uncond)
        network = unet()
        # A refiner's weights may come into the same UNet: the host then makes another inner_model around it.
        if self.kept.reuses(params.denoiser.inner_model, network, rows, params.x.shape):
            return SeenStep(params.denoiser, scale, *rows)
        # Not so in a hires pass of the same checkpoint.
        checkpoint, self.checkpoint = self.checkpoint, getattr(loaded_model(), "sd_checkpoint_info", None)
        if checkpoint is not self.checkpoint:
            self.heads.forget(told=True)
        layers = choose_layers(network, FAMILY, blocks, self.heads)
        if remembers(params.denoiser.p):
            self.reuse.give_up("a unit makes the model remember what it sees (reference)")
        return A1111Step(params.denoiser, scale, *rows, network, layers, FAMILY, self.operator, self.reuse)

    def entrance(self, denoiser: Any) -> nn.Module:
        inner_model: nn.Module = denoiser.inner_model
        return inner_model

    def noise(self, params: Any) -> tuple[NoiseSchedule, float]:
        inner_model = params.denoiser.inner_model
        by_timesteps, level = is_timestep_sampler(inner_model), float(params.sigma[0])
        if self.noise_of is None or self.noise_of[0] is not inner_model:
            found = (
                NoiseSchedule.of_alphas(inner_model.inner_model.alphas_cumprod.tolist())
                if by_timesteps
                else NoiseSchedule(tuple(inner_model.sigmas.tolist()))
            )
            self.noise_of = inner_model, found
        schedule = self.noise_of[1]
        return schedule, schedule.share_at(level) if by_timesteps else schedule.share(level)

    def on_cfg_denoised(self, params: Any) -> None:
        """After the host's pass: the perturbed pass on the conditional rows, and the row shift, in place."""
        step, self.step = self.step, None
        self.rescaling = None
        if step is None:
            return
        with self.errors_kept():
            step.remove()
            self._guide(params.x, step)
            self.guided_calls += 1
            self.reused_calls += self.kept.reused

    def on_cfg_after_cfg(self, params: Any) -> None:
        """After the host's combination: what is left to do to its result."""
        if self.rescaling is not None:
            with self.errors_kept():
                params.x = self.rescaling.of(params.x)
        self.rescaling = None

    def _guide(self, rows: Tensor, step: SeenStep) -> None:
        denoiser = step.denoiser
        weights = [[part.weight for part in parts] for parts in denoiser.sampler.sampler_extra_args["cond"].batch]
        if sum(map(len, weights)) != step.cond_rows or step.recorded_rows < step.cond_rows:
            raise Refused(
                f"ASAG: {step.cond_rows} conditional rows of {step.recorded_rows} run, {weights} expected; another "
                "extension changed what the model is given, and ASAG can't guide that",
                500,
            )
        cond = rows[: step.cond_rows]
        level = _noise_level(step)
        # Noise has a δ that is free of σ already.
        sigma = step.calls[0].sigma[0] if level is None else 1.0
        delta = self._delta(cond, weights, step, sigma)
        pictures = cond if level is None else step.x[: step.cond_rows] - level * cond
        if self.settings.contrast < 1:
            delta = keep_contrast(delta, mean_rows(pictures, weights), self.settings.contrast)
        shift = self.finite(delta * self.scale_of(step.scale, delta, sigma, self._cfg_push(rows, weights, step)))
        # Conditional rows image by image, then a block of one row per image: uncond, or two with InstructPix2Pix.
        images = [image for image, parts in enumerate(weights) for _ in parts]
        images += list(range(step.images)) * ((rows.shape[0] - step.cond_rows) // step.images)
        firsts = [images.index(image) for image in range(step.images)]
        reference = picked_rows(pictures, firsts)
        shift_rows(rows, shift, images)
        if not self.settings.rescale:
            return
        if level is None:
            guided = self._combined(rows, weights, step)
            rows *= picked_rows(rescale_factor(reference, guided, self.settings.rescale), images)
        else:
            self.rescaling = Rescaling(picked_rows(step.x, firsts), level, reference, self.settings.rescale)

    def _delta(self, cond: Tensor, weights: list[list[float]], step: SeenStep, sigma: float | Tensor) -> Tensor:
        """δ of each image, (images, …): this step's, or the last one's."""
        if not isinstance(step, A1111Step):
            return self.kept.again(sigma)
        denoiser = step.denoiser
        with references_spared(denoiser.p, step.layers):
            perturbed_rows = step.predict(whole_calls=fixes_rows(denoiser.p))
        return self.kept.keep(mean_rows(cond - perturbed_rows, weights), sigma)

    def _cfg_push(self, rows: Tensor, weights: list[list[float]], step: SeenStep) -> Tensor | None:
        """CFG's own push, (images, …); None without CFG in this step, or if it isn't needed."""
        if not self.scaling.needs_cfg or math.isclose(_cfg_scale(step), 1.0):
            return None
        unconditional = rows[-step.images :]
        images = [image for image, parts in enumerate(weights) for _ in parts]
        deviation = mean_rows(rows[: step.cond_rows] - picked_rows(unconditional, images), weights)
        return cfg_push(self._combined(rows, weights, step), unconditional, deviation)

    def _combined(self, rows: Tensor, weights: list[list[float]], step: SeenStep) -> Tensor:
        """What the host will make of the rows, (images, …): rows scaled by a factor give it scaled by the factor."""
        denoiser, scale = step.denoiser, _cfg_scale(step)
        if rows.shape[0] - step.cond_rows > step.images:
            edited: Tensor = denoiser.combine_denoised_for_edit_model(rows, scale)
            return edited
        indices = iter(range(step.cond_rows))
        conds_list = [[(next(indices), weight) for weight in parts] for parts in weights]
        combined: Tensor = denoiser.combine_denoised(rows, conds_list, rows[-step.images :], scale)
        return combined


@dataclass(frozen=True)
class Rescaling:
    """Rescale for samplers of noise ε, whose picture is x - √(1-ᾱ) ε up to its size: `level` is √(1-ᾱ), `reference`
    the picture of the conditional prediction. x and reference are (images, channels, height, width).

    It is done to the result and not to the rows: CFG++ renoises with the unconditional rows. The samplers of pictures
    need it before, since the host blends an inpainting's mask in before the result is seen.
    """

    x: Tensor
    level: Tensor
    reference: Tensor
    amount: float

    def of(self, noise: Tensor) -> Tensor:
        """The noise whose picture is that of `noise`, rescaled."""
        picture = self.x - self.level * noise
        return (self.x - rescale_factor(self.reference, picture, self.amount) * picture) / self.level


def _cfg_scale(step: SeenStep) -> float:
    """CFG's scale in the host's combination; 1 where it left the unconditional rows out."""
    if step.recorded_rows == step.cond_rows:
        return 1.0
    denoiser = step.denoiser
    scale: float = denoiser.sampler.sampler_extra_args["cond_scale"] * denoiser.cond_scale_miltiplier
    return scale


def _noise_level(step: SeenStep) -> Tensor | None:
    """√(1-ᾱ) of a step whose rows are noise; None when they are pictures."""
    if not is_timestep_sampler(step.inner_model):
        return None
    alphas: Tensor = step.inner_model.inner_model.alphas_cumprod
    # A tensor of one number: by a bare number of the device's the host would wait for it.
    return (1 - alphas[step.calls[0].sigma[:1].long()])[0].sqrt()


class A1111:
    """The host, for the script. Registers the callbacks that the host calls in every step of every generation."""

    families: Sequence[Family] = (FAMILY,)

    def __init__(self) -> None:
        # Weak: a request that fails in the middle of a step would leave its run and tensors here.
        self.current: Callable[[], A1111Run | None] = _nothing
        script_callbacks.on_cfg_denoiser(self._cfg_denoiser)
        script_callbacks.on_cfg_denoised(self._cfg_denoised)
        script_callbacks.on_cfg_after_cfg(self._cfg_after_cfg)

    def run(self, settings: AsagSettings) -> A1111Run:
        return A1111Run(settings)

    def model(self) -> tuple[nn.Module, Family]:
        return unet(), FAMILY

    def checkpoints(self, wanted: str | None = None) -> tuple[Any, Any]:
        return checkpoints(wanted)

    def _cfg_denoiser(self, params: Any) -> None:
        run = run_of(params.denoiser)
        self.current = ref(run) if isinstance(run, A1111Run) else _nothing
        if run is not None:
            run.on_cfg_denoiser(params)

    def _cfg_denoised(self, params: Any) -> None:
        run = self.current()
        if run is not None:
            run.on_cfg_denoised(params)

    def _cfg_after_cfg(self, params: Any) -> None:
        run, self.current = self.current(), _nothing
        if run is not None:
            run.on_cfg_after_cfg(params)


def _nothing() -> None:
    """No run: as a weak reference whose object is gone."""
