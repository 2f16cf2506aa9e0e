"""Denoisers with random weights in the layout of SD1.5, SDXL, SD3 and Flux, and a step with CFG of each.

What a step costs doesn't depend on the weights. On a CPU sizes are reduced, on an accelerator they are the real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from diffusers import ControlNetModel, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn


class Size(NamedTuple):
    """`width`: channels of a UNet's first level, or heads of a transformer; `latent`: height and width; `depth`: of
    SDXL's deepest level, or of a transformer."""

    width: int
    latent: int
    depth: int = 1


SIZES = {
    "quick": {"sd15": Size(16, 16), "sdxl": Size(32, 8, depth=1), "sd3": Size(1, 8, depth=24), "flux": Size(1, 8)},
    # SD1.5: full width. SDXL: half of it. SD3: a quarter, which leaves it the ratio of tokens to width of SD3 at 1024.
    "cpu": {"sd15": Size(320, 32), "sdxl": Size(160, 64, depth=10), "sd3": Size(6, 64, depth=24)},
    "accelerator": {
        "sd15": Size(320, 64),
        "sdxl": Size(320, 128, depth=10),
        "sd3": Size(24, 128, depth=24),
        "flux": Size(24, 128, depth=19),
    },
}
TEXT_TOKENS = 77
STEPS = 1000


def pipeline_double(denoiser: nn.Module, steps: int = STEPS) -> SimpleNamespace:
    """What asag_guidance looks at in a pipeline, and nothing else. Its scheduler takes a UNet for one that predicts
    noise; that it has ᾱ is looked at, the values aren't."""
    scheduler = SimpleNamespace(timesteps=list(range(steps)), config={"prediction_type": "epsilon"}, alphas_cumprod=())
    return SimpleNamespace(
        unet=denoiser if isinstance(denoiser, UNet2DConditionModel) else None,
        transformer=denoiser if isinstance(denoiser, (SD3Transformer2DModel, FluxTransformer2DModel)) else None,
        scheduler=scheduler,
        do_classifier_free_guidance=True,
        guidance_scale=7.0,
    )


@dataclass
class Denoiser:
    """A model, the arguments of its call on [unconditional, conditional] rows, and a ControlNet with its picture."""

    model: Any
    latents: Tensor
    conditions: dict[str, Any]
    control: Any = None
    picture: Any = None

    def step(self, controlled: bool = False) -> Tensor:
        """The guided prediction of one step."""
        conditions = self.conditions | (self.residuals() if controlled else {})
        rows = self.model(torch.cat([self.latents] * 2), **conditions, return_dict=False)[0]
        uncond, cond = rows.chunk(2)
        guided: Tensor = uncond + 7.0 * (cond - uncond)
        return guided

    def residuals(self, rows: slice = slice(0, 2)) -> dict[str, Any]:
        """What the ControlNet makes of some of the two rows."""
        conditions = take_rows(self.conditions, rows)
        latents, picture = (torch.cat([each] * 2)[rows] for each in (self.latents, self.picture))
        down, middle = self.control(latents, **conditions, controlnet_cond=picture, return_dict=False)
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    @property
    def weight_bytes(self) -> int:
        return sum(each.numel() * each.element_size() for each in self.model.parameters())


def take_rows(given: Any, rows: slice) -> Any:
    if isinstance(given, dict):
        return {name: take_rows(value, rows) for name, value in given.items()}
    return given[rows]


def build(family: str, size: Size, device: torch.device) -> Denoiser:
    """`family` is sd15, sdxl or sd3."""
    torch.manual_seed(0)
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    model = BUILDERS[family](size)
    channels = model.config.in_channels
    conditions: dict[str, Any] = {"timestep": torch.full((2,), 500.0)}
    if family == "sd3":
        conditions["encoder_hidden_states"] = torch.randn(2, TEXT_TOKENS, model.config.joint_attention_dim)
        conditions["pooled_projections"] = torch.randn(2, model.config.pooled_projection_dim)
    else:
        conditions["encoder_hidden_states"] = torch.randn(2, TEXT_TOKENS, model.config.cross_attention_dim)
    if family == "sdxl":
        conditions["added_cond_kwargs"] = {"text_embeds": torch.randn(2, 1280), "time_ids": torch.randn(2, 6)}
    denoiser = Denoiser(model, torch.randn(1, channels, size.latent, size.latent), conditions)
    if family != "sd3":
        denoiser.control = ControlNetModel.from_unet(model)
        denoiser.picture = torch.rand(1, 3, 8 * size.latent, 8 * size.latent).to(device, dtype)
    for module in (denoiser.model, denoiser.control):
        if module is not None:
            nn.Module.to(module, device, dtype).eval().requires_grad_(False)
    denoiser.latents = denoiser.latents.to(device, dtype)
    denoiser.conditions = moved(conditions, device, dtype)
    return denoiser


def moved(given: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(given, dict):
        return {name: moved(value, device, dtype) for name, value in given.items()}
    return given.to(device, dtype)


def sd15_unet(size: Size) -> UNet2DConditionModel:
    """SD1.5 has width 320."""
    width = size.width
    return UNet2DConditionModel(
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        attention_head_dim=8,  # the number of heads, by an old mistake in the name
        cross_attention_dim=768,
        norm_num_groups=min(32, width),
    )


def sdxl_unet(size: Size) -> UNet2DConditionModel:
    """SDXL has width 320 and depth 10. Heads have 64 channels, as there; the first level has no attention."""
    width = size.width
    return UNet2DConditionModel(
        block_out_channels=(width, 2 * width, 4 * width),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, min(2, size.depth), size.depth),
        attention_head_dim=(1, 2 * width // 64, 4 * width // 64),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=1280 + 6 * 256,
    )


def sd3_transformer(size: Size) -> SD3Transformer2DModel:
    """SD3 medium has 24 heads and depth 24."""
    return SD3Transformer2DModel(
        sample_size=128,
        in_channels=16,
        out_channels=16,
        num_layers=size.depth,
        attention_head_dim=64,
        num_attention_heads=size.width,
        caption_projection_dim=64 * size.width,
        joint_attention_dim=4096,
        pooled_projection_dim=2048,
        pos_embed_max_size=192,
    )


def flux_transformer(size: Size) -> FluxTransformer2DModel:
    """Flux.1 has 24 heads of 128, and depth 19: so many double blocks, and twice as many single ones."""
    return FluxTransformer2DModel(
        num_layers=size.depth,
        num_single_layers=2 * size.depth,
        num_attention_heads=size.width,
        guidance_embeds=True,
    )


BUILDERS: dict[str, Callable[[Size], Any]] = {
    "sd15": sd15_unet,
    "sdxl": sdxl_unet,
    "sd3": sd3_transformer,
    "flux": flux_transformer,
}
