"""ASAG as a guider of diffusers' modular pipelines, beside PerturbedAttentionGuidance and SmoothedEnergyGuidance.

    pipe.update_components(guider=AdversarialSinkhornAttentionGuidance(guidance_scale=7.5))

Source: diffusers/guiders (BaseGuidance) and diffusers/modular_pipelines/*/denoise.py, whose loops call set_state,
prepare_inputs, and for each batch prepare_models, the denoiser and cleanup_models, then the guider itself.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

from diffusers.configuration_utils import register_to_config
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput, rescale_noise_cfg
from torch import Tensor, nn

from asag.guidance import in_window
from asag.hosts.diffusers import FAMILIES, eager
from asag.hosts.diffusers_call import scene_of
from asag.models.base import family_of
from asag.perturb import choose_layers, forward_replaced, perturbed
from asag.settings import AsagSettings


class AdversarialSinkhornAttentionGuidance(BaseGuidance):
    """Adversarial Sinkhorn Attention Guidance (paper: Eq. 4), with or without classifier-free guidance:

        pred_uncond + guidance_scale (pred_cond - pred_uncond) + adversarial_guidance_scale (pred_cond - perturbed)

    Args:
        guidance_scale: of classifier-free guidance; 1 (0 with `use_original_formulation`) leaves that out.
        adversarial_guidance_scale: 0 to 100; 0 leaves the perturbed pass out.
        adversarial_guidance_start: fraction of the steps from which on the perturbed pass runs.
        adversarial_guidance_stop: fraction of the steps at which it ends.
        adversarial_guidance_blocks: "auto", "late", "all" or block addresses such as "mid" or "joint.7" (asag.blocks).
        iterations: Sinkhorn iterations.
        strength: factor on the paper's λ.
        method: "asag", or "pag", "seg", "uniform", "similarity" for comparison.
        guidance_rescale: pulls the prediction's spread back to the conditional one's (arXiv 2305.08891, section 3.4).
        use_original_formulation: classifier-free guidance starts from pred_cond, as its paper has it.
        start, stop: fractions of the steps between which classifier-free guidance runs.
        enabled: False leaves both out.

    Raises:
        SettingsError: naming every bad value.
        BlocksError: at the first perturbed step, naming the block that the model doesn't have.
    """

    _input_predictions = ["pred_cond", "pred_uncond", "pred_cond_adversarial"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        guidance_scale: float = 7.5,
        adversarial_guidance_scale: float = 1.5,
        adversarial_guidance_start: float = 0.0,
        adversarial_guidance_stop: float = 1.0,
        adversarial_guidance_blocks: str = "auto",
        iterations: int = 2,
        strength: float = 1.0,
        method: str = "asag",
        guidance_rescale: float = 0.0,
        use_original_formulation: bool = False,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        super().__init__(start, stop, enabled)
        self.settings = AsagSettings.from_mapping(
            {
                "scale": adversarial_guidance_scale,
                "start": adversarial_guidance_start,
                "end": adversarial_guidance_stop,
                "blocks": adversarial_guidance_blocks,
                "iterations": iterations,
                "strength": strength,
                "method": method,
                "rescale": guidance_rescale,
            }
        )
        self.guidance_scale = guidance_scale
        self.guidance_rescale = guidance_rescale
        self.use_original_formulation = use_original_formulation
        self._placed = ExitStack()

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        """Called before each step."""
        self._placed.close()  # what a loop left behind that ended between prepare_models and the denoiser's call
        super().set_state(step, num_inference_steps, timestep)

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Called before each batch; for the perturbed one, make the next call of the denoiser a perturbed one."""
        super().prepare_models(denoiser)
        if self._predictions()[self._count_prepared - 1] != "pred_cond_adversarial":
            return
        model = eager(denoiser)
        family = family_of(model, FAMILIES)
        layers = choose_layers(model, family, self.settings.blocks)
        operator = self.settings.operator()
        original = model.forward

        # The loop calls cleanup_models only if the denoiser raised nothing, so the operators are placed during the
        # call alone, and the call itself ends the replacement.
        def forward(*args: Any, **kwargs: Any) -> Any:
            with self._placed, perturbed(layers, family, operator, scene_of(args, kwargs)):
                return original(*args, **kwargs)

        self._placed.enter_context(forward_replaced(denoiser, forward))

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
        pred = pred_cond
        if pred_uncond is not None:
            start = pred_cond if self.use_original_formulation else pred_uncond
            pred = start + self.guidance_scale * (pred_cond - pred_uncond)
        if pred_cond_adversarial is not None:
            pred = pred + self.settings.scale * (pred_cond - pred_cond_adversarial)
        if self.guidance_rescale > 0.0:
            pred = rescale_noise_cfg(pred, pred_cond, self.guidance_rescale)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)

    @property
    def is_conditional(self) -> bool:
        """Whether the batch prepared last is a conditional one, perturbed or not."""
        return self._predictions()[max(self._count_prepared, 1) - 1] != "pred_uncond"

    @property
    def num_conditions(self) -> int:
        return len(self._predictions())

    def _predictions(self) -> list[str]:
        """The predictions of the current step, in the order in which the loop makes them."""
        neutral = 0.0 if self.use_original_formulation else 1.0
        cfg = not math.isclose(self.guidance_scale, neutral) and self._is_within(self._start, self._stop)
        adversarial = self.settings.scale > 0 and self._is_within(self.settings.start, self.settings.end)
        return ["pred_cond"] + ["pred_uncond"] * cfg + ["pred_cond_adversarial"] * adversarial

    def _is_within(self, start: float, stop: float) -> bool:
        if not self._enabled:
            return False
        if self._num_inference_steps is None:
            return True
        # Heun-like schedulers make more model calls than the steps that the loop counts to.
        step = min(self._step, self._num_inference_steps - 1)
        return in_window(step, self._num_inference_steps, start, stop)
