"""ASAG as a guider of diffusers' modular pipelines, beside PerturbedAttentionGuidance and SmoothedEnergyGuidance.

    pipe.update_components(guider=AdversarialSinkhornAttentionGuidance(guidance_scale=7.5))

Source: diffusers/guiders (BaseGuidance) and diffusers/modular_pipelines/*/denoise.py, whose loops call set_state,
prepare_inputs, and for each batch prepare_models, the denoiser and cleanup_models, then the guider itself.
"""

from __future__ import annotations

import logging
import math
import re
from contextlib import ExitStack
from typing import Any

from diffusers.configuration_utils import register_to_config
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput, rescale_noise_cfg
from torch import Tensor, nn

from asag.chosen_heads import ChosenHeads
from asag.finite import FinitePushes
from asag.guidance import in_window, keep_contrast, scheduled_scale
from asag.hosts.diffusers_arguments import ARGUMENTS, signature
from asag.hosts.diffusers_call import velocity_of_grey
from asag.hosts.diffusers_models import FAMILIES, eager
from asag.hosts.diffusers_other_code import other_code
from asag.hosts.diffusers_shared import Perturbation, SharedWork
from asag.kept_delta import KeptDelta
from asag.models.base import Family, Forward, UnsupportedModel, family_of
from asag.models.diffusers_mmdit import FluxTransformer
from asag.models.diffusers_unet import DiffusersUnet
from asag.noise import NoiseSchedule
from asag.perturb import choose_layers, forward_replaced
from asag.rounding import Rounding
from asag.settings import AsagSettings, SettingsError, read_settings
from asag.units import WITHOUT_CFG, UnitScale

logger = logging.getLogger(__name__)

# Of the noise schedule that a model was trained with, in diffusers.
TIMESTEPS = 1000


class AdversarialSinkhornAttentionGuidance(BaseGuidance):
    """Adversarial Sinkhorn Attention Guidance (paper: Eq. 4), with or without classifier-free guidance:

        pred_uncond + guidance_scale (pred_cond - pred_uncond) + adversarial_guidance_scale (pred_cond - perturbed)

    Args:
        guidance_scale: of classifier-free guidance; 1 (0 with `use_original_formulation`) leaves that out.
        adversarial_guidance_scale, _blocks, _start, _stop: the settings scale, blocks, start and end; a scale of 0
            leaves the perturbed pass out.
        guidance_rescale: 0 to 1; pulls the prediction's spread back to the conditional one's (arXiv 2305.08891,
            section 3.4). It acts on the prediction, as in diffusers' other guiders; the setting rescale acts on the
            picture elsewhere, so that one value isn't equally strong.
        iterations, strength, method, schedule, contrast, unit, blur, tolerance, amount, every, reuse: the settings of
            these names (see asag.settings). A contrast below 1 works in models that predict a velocity, SD3 and Flux.
            `every` takes a UNet for one that predicts noise. In unit push the push is one of what the model predicts.
        adaptive: the earlier spelling of unit: True is "push", False "paper".
        use_original_formulation: classifier-free guidance starts from pred_cond, as its paper has it.
        start, stop: fractions of the steps between which classifier-free guidance runs.
        enabled: False leaves both out.

    Raises:
        SettingsError: naming every bad value.
        BlocksError: at the first perturbed step, naming the block that the model doesn't have.
        UnsupportedModel: then, too, naming a model that can't be guided, or a setting that it can't be guided with.
    """

    _input_predictions = ["pred_cond", "pred_uncond", "pred_cond_adversarial"]  # noqa: RUF012

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        bound = signature().bind(self, *args, **kwargs)
        gives_unit = "unit" in bound.arguments
        bound.apply_defaults()
        given = bound.arguments
        super().__init__(given["start"], given["stop"], given["enabled"])
        values = {name: given[argument] for name, argument in ARGUMENTS.items()}
        if given["adaptive"] is not None:
            # An earlier spelling, also in what was saved; read_settings names it beside a unit.
            values["adaptive" if gives_unit else "unit"] = given["adaptive"]
        read, problems = read_settings(values)
        problems += [
            f"{name}: {read[name]}; allowed: fractions of the steps or percentages, since a guider doesn't know σ"
            for name in ("start", "end")
            if str(read.get(name)).startswith("sigma")
        ]
        if problems:
            names = "|".join(ARGUMENTS)
            raise SettingsError([re.sub(rf"^({names}):", lambda at: ARGUMENTS[at[1]] + ":", each) for each in problems])
        self.settings = AsagSettings(**read)
        if given["adaptive"] is not None:
            # What is saved has the unit alone.
            others = [name for name in self.config["_use_default_values"] if name != "unit"]
            self.register_to_config(unit=self.settings.unit, adaptive=None, _use_default_values=others)
        self.guidance_scale = given["guidance_scale"]
        self.guidance_rescale = self.settings.rescale
        self.use_original_formulation = given["use_original_formulation"]
        self._placed = ExitStack()
        self._unit = UnitScale(self.settings.unit)
        self._heads = ChosenHeads()
        self._kept, self._finite, self._rounding = KeptDelta(self.settings.every), FinitePushes(), Rounding()
        self._shared = SharedWork(self.settings.reuse)
        self._place: Perturbation | None = None
        self._call: tuple[Any, dict[str, Any]] = (), {}
        # By what a flow-matching model's timestep is its σ; of the model that is perturbed now.
        self._flow_timesteps = 1000

    # What register_to_config and from_config go by.
    __init__.__signature__ = signature()  # type: ignore[attr-defined]
    __init__ = register_to_config(__init__)

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        """Called before each step."""
        self._placed.close()  # what a loop left behind that ended between prepare_models and the denoiser's call
        self._forget_step()
        repeated = step == self._step and step > 0
        super().set_state(step, num_inference_steps, timestep)
        if step == 0:
            self._unit.begin_pass()
            self._finite, self._rounding = FinitePushes(), Rounding()
            self._kept = KeptDelta(self.settings.every)
            self._heads.forget()
            self._shared.begin_pass()
        elif repeated:
            # A loop over tiles: the last δ would be another tile's.
            self._kept = KeptDelta(1)
        if not self._enabled or not self._scale():
            self._kept.forget()
        else:
            self._kept.reuses(num_inference_steps)

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Called before each batch. The perturbed prediction is made in the conditional batch's call, or in its own."""
        self._placed.close()
        super().prepare_models(denoiser)
        predictions = self._predictions()
        prediction = predictions[self._count_prepared - 1]
        if prediction == "pred_cond_adversarial":
            self._replace(denoiser, self._shared.weakened(self._perturbation(denoiser)))
        elif prediction == "pred_cond" and "pred_cond_adversarial" in predictions and self._shared.reuse.on:
            self._replace(denoiser, self._shared.conditional(self._perturbation(denoiser)))
        elif prediction == "pred_cond" and self._kept.reused and self.settings.contrast < 1:
            # By what this call is given the picture is known; there is no perturbed one that tells.
            self._replace(denoiser, denoiser.forward)

    def _replace(self, denoiser: nn.Module, run: Forward) -> None:
        """Make the denoiser's next call one of `run`, and keep what it is given."""

        # The loop calls cleanup_models only if the denoiser raised nothing, so operators are placed during the call
        # alone, and the call itself ends the replacement.
        def forward(*args: Any, **kwargs: Any) -> Any:
            self._call = args, kwargs
            with self._placed:
                return run(*args, **kwargs)

        self._placed.enter_context(forward_replaced(denoiser, forward))

    def _perturbation(self, denoiser: nn.Module) -> Perturbation:
        """How the denoiser is perturbed; looked up once a step: it has hundreds of modules."""
        if self._place is None or self._place.denoiser is not denoiser:
            model = eager(denoiser)
            family = family_of(model, FAMILIES)
            self._check(model, family)
            layers = choose_layers(model, family, self.settings.blocks, self._heads)
            self._place = Perturbation(denoiser, model, family, layers, self.settings.operator())
        return self._place

    def _forget_step(self) -> None:
        """Hold neither a model nor what it was given from one step to the next."""
        self._place = None
        self._shared.forget()

    def _check(self, model: nn.Module, family: Family) -> None:
        """Refuse what would be guided wrong."""
        is_unet = isinstance(family, DiffusersUnet)
        if is_unet and self.settings.contrast < 1:
            raise UnsupportedModel(
                f"contrast: {self.settings.contrast:g} with a UNet; allowed: 1, since a guider doesn't know the "
                "scheduler, which it needs for the picture; or asag_guidance with a classic pipeline"
            )
        others = other_code(model)
        if others:
            raise UnsupportedModel(
                f"model: {others[0]}, which may not work with one more pass; allowed: a model without it, or "
                "asag_guidance with a classic pipeline, which repeats what it does"
            )
        self._flow_timesteps = 1 if isinstance(family, FluxTransformer) else 1000

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """Called after each batch: whatever prepare_models did is undone."""
        self._placed.close()

    def prepare_inputs(self, data: dict[str, tuple[Any, Any]]) -> list[Any]:
        return [self._prepare_batch(data, int(name == "pred_uncond"), name) for name in self._predictions()]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict[str, str | tuple[str, str]]) -> list[Any]:
        return [
            self._prepare_batch_from_block_state(input_fields, data, int(name == "pred_uncond"), name)
            for name in self._predictions()
        ]

    def forward(
        self, pred_cond: Tensor, pred_uncond: Tensor | None = None, pred_cond_adversarial: Tensor | None = None
    ) -> GuiderOutput:
        """The guided prediction from those that ran, all (batch, …)."""
        self._forget_step()
        pred = pred_cond
        if pred_uncond is not None:
            start = pred_cond if self.use_original_formulation else pred_uncond
            pred = start + self.guidance_scale * (pred_cond - pred_uncond)
        if pred_cond_adversarial is not None or self._kept.reused:
            cfg = None if pred_uncond is None else pred - pred_cond
            pred = pred + self._push(pred_cond, pred_cond_adversarial, cfg)
        if self.guidance_rescale > 0.0:
            pred = rescale_noise_cfg(pred, pred_cond, self.guidance_rescale)
        if self._num_inference_steps == (self._step or 0) + 1:
            self._finite.log()
            self._rounding.log()
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)

    def _push(self, pred_cond: Tensor, perturbed_prediction: Tensor | None, cfg: Tensor | None) -> Tensor:
        """s δ of this step; `cfg` is CFG's own push, None without CFG. Without a perturbed prediction δ is the last
        one, as predicted: which of them are a picture's, a guider isn't told."""
        given, scale = self.settings, self._scale()
        if perturbed_prediction is None:
            delta = self._kept.again(1.0)
        else:
            delta = self._kept.keep(pred_cond - perturbed_prediction, 1.0)
            self._rounding.add(delta, pred_cond, pred_cond.dtype)
        if given.contrast < 1:
            picture = velocity_of_grey(*self._call, pred_cond, self._flow_timesteps) - pred_cond
            delta = keep_contrast(delta, picture, given.contrast, channels=1 if pred_cond.ndim == 4 else -1)
        self._call = (), {}
        before = self._unit.without_cfg
        factor = self._unit(scale, delta, cfg)
        if self._unit.without_cfg and not before:
            logger.warning("ASAG uses unit push at %g times the scale: unit cfg needs CFG", WITHOUT_CFG)
        return self._finite(factor * delta)

    def _scale(self) -> float:
        """The scale of this step, 0 outside the window."""
        given, calls = self.settings, self._num_inference_steps
        if isinstance(given.start, str) or isinstance(given.end, str):
            # Percentages alone, for which it doesn't matter what σ a timestep means.
            share = 1 - float(self._timestep) / TIMESTEPS
            return given.window.scale(given.scale, given.schedule, NoiseSchedule(), share, calls)
        return scheduled_scale(given.scale, given.schedule, self._step, calls, given.start, given.end)

    @property
    def is_conditional(self) -> bool:
        """Whether the batch prepared last is a conditional one, perturbed or not."""
        prepared: int = self._count_prepared
        return self._predictions()[max(prepared, 1) - 1] != "pred_uncond"

    @property
    def num_conditions(self) -> int:
        return len(self._predictions())

    def _predictions(self) -> list[str]:
        """The predictions of the current step, in the order in which the loop makes them."""
        neutral = 0.0 if self.use_original_formulation else 1.0
        cfg = self._enabled and not math.isclose(self.guidance_scale, neutral)
        adversarial = self._enabled and self.settings.scale > 0 and not self.settings.no_effect
        adversarial = adversarial and not self._kept.reused
        if self._num_inference_steps is not None:  # before the first step: those of all steps
            cfg = cfg and in_window(self._step, self._num_inference_steps, self._start, self._stop)
            adversarial = adversarial and self._scale() > 0
        predictions = ["pred_cond"]
        if cfg:
            predictions.append("pred_uncond")
        if adversarial:
            predictions.append("pred_cond_adversarial")
        return predictions
