"""A denoiser in the layout of a real model, with random weights, and the arguments of one call of a sampling step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from asag.lab.bench import models
from asag.lab.bench.shapes import StepCase

FLUX_TEXT_TOKENS = 512
CFG_SCALE = 7.0


@dataclass
class StepModel:
    """`rows` are [unconditional, conditional] latents, of Flux the conditional ones; `given` is the rest of a call."""

    model: Any
    rows: Tensor
    given: dict[str, Any]

    @property
    def weight_bytes(self) -> int:
        return sum(each.numel() * each.element_size() for each in self.model.parameters())

    def predict(self) -> Tensor:
        """The model's prediction for every row."""
        # A tensor object of its own for each step, as a sampler has; Flux tells repeated calls by it.
        predicted: Tensor = self.model(self.rows.view_as(self.rows), **self.given)[0]
        return predicted

    def step(self) -> Tensor:
        """The prediction of one step, by classifier-free guidance where the model has two rows for an image."""
        predicted = self.predict()
        if isinstance(self.model, FluxTransformer2DModel):
            return predicted
        uncond, cond = predicted.chunk(2)
        return uncond + CFG_SCALE * (cond - uncond)

    def pipeline(self) -> Any:
        """What asag_guidance looks at in a pipeline; a double."""
        pipe = models.pipeline_double(self.model)
        if isinstance(self.model, FluxTransformer2DModel):
            pipe.do_classifier_free_guidance = False
        pipe.scheduler = SimpleNamespace(
            timesteps=list(range(models.STEPS)), config={}, alphas_cumprod=torch.linspace(0.999, 0.01, 1000)
        )
        return pipe


@contextmanager
def made_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """While open, new tensors and modules are made there, in that dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def step_model(
    case: StepCase, device: torch.device, dtype: torch.dtype = torch.float16, quick: bool = False
) -> StepModel:
    """`quick`: a tiny one. Weights and inputs are random; what a step costs doesn't depend on them."""
    size = models.SIZES["quick" if quick else "accelerator"][case.family]
    with made_on(device, dtype):
        model = models.BUILDERS[case.family](size).eval().requires_grad_(False)
        if case.family == "flux":
            return flux_call(model, case)
        return call_with_cfg(model, case)


def call_with_cfg(model: Any, case: StepCase) -> StepModel:
    count, config = 2 * case.batch, model.config
    given: dict[str, Any] = {"timestep": torch.full((count,), 500.0), "return_dict": False}
    if case.family == "sd3":
        given["encoder_hidden_states"] = torch.randn(count, 2 * models.TEXT_TOKENS, config.joint_attention_dim)
        given["pooled_projections"] = torch.randn(count, config.pooled_projection_dim)
    else:
        given["encoder_hidden_states"] = torch.randn(count, models.TEXT_TOKENS, config.cross_attention_dim)
    if case.family == "sdxl":
        given["added_cond_kwargs"] = {"text_embeds": torch.randn(count, 1280), "time_ids": torch.randn(count, 6)}
    latents = torch.randn(case.batch, config.in_channels, case.height, case.width)
    return StepModel(model, torch.cat([latents, latents]), given)


def flux_call(model: Any, case: StepCase) -> StepModel:
    """Latents come packed into tokens of 2 x 2; ids say where each token lies."""
    config, height, width = model.config, case.height // 2, case.width // 2
    ids = torch.zeros(height, width, 3)
    ids[..., 1] += torch.arange(height)[:, None]
    ids[..., 2] += torch.arange(width)
    given: dict[str, Any] = {
        "timestep": torch.full((case.batch,), 0.5),
        "guidance": torch.full((case.batch,), 3.5),
        "img_ids": ids.flatten(0, 1),
        "txt_ids": torch.zeros(FLUX_TEXT_TOKENS, 3),
        "encoder_hidden_states": torch.randn(case.batch, FLUX_TEXT_TOKENS, config.joint_attention_dim),
        "pooled_projections": torch.randn(case.batch, config.pooled_projection_dim),
        "return_dict": False,
    }
    return StepModel(model, torch.randn(case.batch, height * width, config.in_channels), given)
