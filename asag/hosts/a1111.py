"""AUTOMATIC1111 1.10: one guided generation, driven by the CFG denoiser's callbacks.

Source: modules/sd_samplers_cfg_denoiser.py. In a step the `cfg_denoiser` callback comes first, then `inner_model` runs
on all rows, in one call or several, then comes the `cfg_denoised` callback with all rows, and then the host combines
them (asag.hosts.a1111_combination).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any
from weakref import ref

from modules import script_callbacks
from torch import Tensor, nn

from asag.guidance import cfg_push, keep_contrast, mean_rows, picked_rows, rescale_factor, shift_rows
from asag.hosts.a1111_combination import Combination
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
    """Adds s δ to what the host combines the rows of its own pass to."""

    def __init__(self, settings: AsagSettings) -> None:
        super().__init__(settings)
        self.combination: Combination | None = None
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
            self.reuse.give_up("one of ControlNet's reference units is on")
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
        """After the host's pass: the perturbed pass on the conditional rows. It counts when the host combines."""
        step = self.step
        if step is None:
            return
        with self.errors_kept():
            step.remove()
            weights = _weights(step)
            delta = self._delta(params.x[: step.cond_rows], weights, step)
            self.combination = Combination(
                step.denoiser, lambda result: self._on_combined(result, params.x, weights, step, delta)
            )

    def close(self) -> None:
        super().close()
        if self.combination is not None:
            self.combination.remove()
        self.combination = None

    def _on_combined(
        self, result: Tensor, rows: Tensor, weights: list[list[float]], step: SeenStep, delta: Tensor
    ) -> Tensor:
        """The step's result, (images, …), guided. `rows` are what the host has combined."""
        with self.errors_kept():
            self.step = self.combination = None
            guided = self._guided(result, rows, weights, step, delta)
            self.guided_calls += 1
            self.reused_calls += self.kept.reused
            return guided

    def _guided(
        self, result: Tensor, rows: Tensor, weights: list[list[float]], step: SeenStep, delta: Tensor
    ) -> Tensor:
        cond = rows[: step.cond_rows]
        level, sigma = _noise_level(step), _sigma(step)
        pictures = cond if level is None else step.x[: step.cond_rows] - level * cond
        if self.settings.contrast < 1:
            delta = keep_contrast(delta, mean_rows(pictures, weights), self.settings.contrast)
        images = [image for image, parts in enumerate(weights) for _ in parts]
        firsts = [images.index(image) for image in range(step.images)]
        reference = picked_rows(pictures, firsts)
        cfg = self._cfg_push(result, rows, weights, step)
        shift = self.finite(delta * self.scale_of(step.scale, delta, sigma, cfg)).to(result.dtype)
        guided = result + shift
        # Samplers of CFG++ renoise with the unconditional rows: what guides all rows shifts these as well.
        if step.denoiser.need_last_noise_uncond:
            step.denoiser.last_noise_uncond += shift
        # An interrupted picture, and a preview of the prompt, are the conditional rows.
        shift_rows(cond, shift, images)
        if not self.settings.rescale:
            return guided
        if level is None:
            return guided * rescale_factor(reference, guided, self.settings.rescale)
        # A picture is x - √(1-ᾱ) ε up to its size.
        x = picked_rows(step.x, firsts)
        picture = x - level * guided
        return (x - rescale_factor(reference, picture, self.settings.rescale) * picture) / level

    def _delta(self, cond: Tensor, weights: list[list[float]], step: SeenStep) -> Tensor:
        """δ of each image, (images, …): this step's, or the last one's."""
        sigma = _sigma(step)
        if not isinstance(step, A1111Step):
            return self.kept.again(sigma)
        denoiser = step.denoiser
        with references_spared(denoiser.p, step.layers):
            perturbed_rows = step.predict(whole_calls=fixes_rows(denoiser.p))
        delta = mean_rows(cond - perturbed_rows, weights)
        # The noise or velocity, or σ times that, as δ is.
        predicted = cond if is_timestep_sampler(step.inner_model) else step.x[: step.cond_rows] - cond
        self.rounding.add(delta, mean_rows(predicted, weights), next(step.network.parameters()).dtype)
        return self.kept.keep(delta, sigma)

    def _cfg_push(self, result: Tensor, rows: Tensor, weights: list[list[float]], step: SeenStep) -> Tensor | None:
        """CFG's own push, (images, …); None without CFG in this step, or if it isn't needed."""
        if not self.scaling.needs_cfg or math.isclose(_cfg_scale(step), 1.0):
            return None
        unconditional = rows[-step.images :]
        images = [image for image, parts in enumerate(weights) for _ in parts]
        deviation = mean_rows(rows[: step.cond_rows] - picked_rows(unconditional, images), weights)
        return cfg_push(result, unconditional, deviation)


def _weights(step: SeenStep) -> list[list[float]]:
    """The weights of the parts of each image's prompt; raises Refused where they aren't those of the rows that ran."""
    weights = [[part.weight for part in parts] for parts in step.denoiser.sampler.sampler_extra_args["cond"].batch]
    if sum(map(len, weights)) != step.cond_rows or step.recorded_rows < step.cond_rows:
        raise Refused(
            "ASAG can't guide this picture: another extension changed what the model is given "
            f"({step.cond_rows} conditional rows of {step.recorded_rows}, weights {weights}); switch it off",
            500,
        )
    return weights


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


def _sigma(step: SeenStep) -> float | Tensor:
    """What δ is divided by for that of the noise: noise has a δ that is free of σ already."""
    if is_timestep_sampler(step.inner_model):
        return 1.0
    sigma: Tensor = step.calls[0].sigma[0]
    return sigma


class A1111:
    """The host, for the script. Registers the callbacks that the host calls in every step of every generation."""

    families: Sequence[Family] = (FAMILY,)

    def __init__(self) -> None:
        # Weak: a request that fails in the middle of a step would leave its run and tensors here.
        self.current: Callable[[], A1111Run | None] = _nothing
        script_callbacks.on_cfg_denoiser(self._cfg_denoiser)
        script_callbacks.on_cfg_denoised(self._cfg_denoised)

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
        run, self.current = self.current(), _nothing
        if run is not None:
            run.on_cfg_denoised(params)


def _nothing() -> None:
    """No run: as a weak reference whose object is gone."""
