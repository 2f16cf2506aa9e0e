"""Tiny random diffusers models and pipelines, without text encoders: prompts are given as embeddings.

Their attention is far from uniform and their norms are not the identity, so that an error in either shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn

from asag.hosts.diffusers_pipeline import asag_guidance

TEXT_WIDTH, TEXT_TOKENS = 16, 6
SDXL_DEPTHS = (1, 2, 10)


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights from a seed: queries and keys with a gain, norms away from (1, 0)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                is_gain = "norm" in name and name.endswith("weight")
                parameter.copy_(0.3 * noise + (1.0 if is_gain else 0.0))
            else:
                gain = 2.5 if any(part in name for part in ("to_q", "to_k", "add_q_proj", "add_k_proj")) else 1.0
                parameter.copy_(gain * noise / parameter[0].numel() ** 0.5)
    return model.eval().requires_grad_(False)


def sd15_unet(**changes: Any) -> UNet2DConditionModel:
    """The layout of SD1.5; a latent of 32 x 32 has 16 tokens in the middle."""
    config: dict[str, Any] = {
        "sample_size": 32,
        "block_out_channels": (8, 8, 16, 16),
        "layers_per_block": 2,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "cross_attention_dim": TEXT_WIDTH,
    }
    return lively(UNet2DConditionModel(**(config | changes)))


def sdxl_unet(**changes: Any) -> UNet2DConditionModel:
    """The layout of SDXL, with fewer transformer blocks in a row; SDXL_DEPTHS has as many as SDXL.

    A latent of 16 x 16 has 16 tokens in the middle.
    """
    config: dict[str, Any] = {
        "sample_size": 16,
        "block_out_channels": (8, 8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1, 2),
        "attention_head_dim": (2, 2, 2),
        "norm_num_groups": 4,
        "cross_attention_dim": TEXT_WIDTH,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": TEXT_WIDTH + 6 * 4,
    }
    return lively(UNet2DConditionModel(**(config | changes)))


def sd3_transformer(**changes: Any) -> SD3Transformer2DModel:
    config: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 4,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": TEXT_WIDTH,
        "caption_projection_dim": 16,
        "pooled_projection_dim": TEXT_WIDTH,
        "pos_embed_max_size": 16,
    }
    return lively(SD3Transformer2DModel(**(config | changes)))


def sd35_transformer() -> SD3Transformer2DModel:
    return sd3_transformer(dual_attention_layers=(0, 1, 2), qk_norm="rms_norm")


def flux_transformer(**changes: Any) -> FluxTransformer2DModel:
    config: dict[str, Any] = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": TEXT_WIDTH,
        "pooled_projection_dim": TEXT_WIDTH,
        "axes_dims_rope": (4, 6, 6),
    }
    return lively(FluxTransformer2DModel(**(config | changes)))


def vae(channels: int = 4) -> AutoencoderKL:
    """A scale factor of 8, as the pipelines expect."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    model = AutoencoderKL(
        block_out_channels=(8,) * 4, norm_num_groups=4, latent_channels=channels, shift_factor=0.1, **blocks
    )
    return model.eval().requires_grad_(False)


def controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    return lively(ControlNetModel.from_unet(unet, load_weights_from_unet=False), seed=7)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd15_pipe(cls: type = StableDiffusionPipeline, unet: Any = None, scheduler: Any = None, **parts: Any) -> Any:
    components = {
        "vae": vae(),
        "text_encoder": None,
        "tokenizer": None,
        "unet": unet or sd15_unet(),
        "scheduler": scheduler or DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    return quiet(cls(**(components | parts)))


def sdxl_pipe(cls: type = StableDiffusionXLPipeline, unet: Any = None, **parts: Any) -> Any:
    components = {
        "vae": vae(),
        "text_encoder": None,
        "text_encoder_2": None,
        "tokenizer": None,
        "tokenizer_2": None,
        "unet": unet or sdxl_unet(),
        "scheduler": EulerDiscreteScheduler(),
    }
    return quiet(cls(**(components | parts)))


def sd3_pipe(cls: type = StableDiffusion3Pipeline, transformer: Any = None, **parts: Any) -> Any:
    components = {
        "transformer": transformer or sd3_transformer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "vae": vae(),
        "text_encoder": None,
        "tokenizer": None,
        "text_encoder_2": None,
        "tokenizer_2": None,
        "text_encoder_3": None,
        "tokenizer_3": None,
    }
    return quiet(cls(**(components | parts)))


def flux_pipe(cls: type = FluxPipeline, transformer: Any = None, **parts: Any) -> Any:
    components = {
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "vae": vae(),
        "text_encoder": None,
        "tokenizer": None,
        "text_encoder_2": None,
        "tokenizer_2": None,
        "transformer": transformer or flux_transformer(),
    }
    return quiet(cls(**(components | parts)))


def text_inputs(kind: str, images: int = 1, seed: int = 1, guided: bool = True) -> dict[str, Any]:
    """Embeddings of a prompt and, where wanted, of a negative one; `kind` is sd15, sdxl, sd3 or flux."""
    given = {"prompt_embeds": normal(images, TEXT_TOKENS, TEXT_WIDTH, seed=seed)}
    if kind != "sd15":
        given["pooled_prompt_embeds"] = normal(images, TEXT_WIDTH, seed=seed + 1)
    if guided:
        given |= {f"negative_{name}": normal(*each.shape, seed=seed + 50) for name, each in given.items()}
    return given


def inputs(kind: str, images: int = 1, guided: bool = True, steps: int = 3, seed: int = 1) -> dict[str, Any]:
    """The arguments of a pipeline call whose result is a latent. Latents: 32 x 32, 16 x 16, 8 x 12 (SD3, Flux)."""
    height, width = {"sd15": (32, 32), "sdxl": (16, 16), "sd3": (8, 12), "flux": (8, 12)}[kind]
    latents = normal(images, 4, height, width, seed=seed + 9)
    if kind == "flux":
        latents = normal(images, height * width // 4, 16, seed=seed + 9)
    given: dict[str, Any] = {
        "height": height * 8,
        "width": width * 8,
        "latents": latents,
        "num_inference_steps": steps,
        "output_type": "latent",
    }
    if kind == "flux":
        given["true_cfg_scale"] = 3.0 if guided else 1.0
    else:
        given["guidance_scale"] = 4.0 if guided else 1.0
    return given | text_inputs(kind, images, seed, guided)


PIPES = {"sd15": sd15_pipe, "sdxl": sdxl_pipe, "sd3": sd3_pipe, "flux": flux_pipe}


def latents(pipe: Any, given: dict[str, Any], **settings: Any) -> Tensor:
    """The pipeline's result, guided if there are settings."""
    if not settings:
        return pipe(**given).images
    with asag_guidance(pipe, **settings):
        return pipe(**given).images


def difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max() / second.std())


@contextmanager
def recorded_rows(model: nn.Module) -> Iterator[list[Tensor]]:
    """The predictions that the host gets, call by call. Opened before a guidance, it sees them shifted."""
    rows: list[Tensor] = []
    handle = model.register_forward_hook(lambda module, args, output: rows.append(output[0].clone()))
    try:
        yield rows
    finally:
        handle.remove()


@contextmanager
def counted_calls(model: nn.Module) -> Iterator[list[int]]:
    """How many rows each run of the model had, the perturbed ones among them.

    Counted by the class of its first module: beside a hook in the model nothing is shared.
    """
    entrance = model.conv_in if hasattr(model, "conv_in") else model.time_text_embed
    rows: list[int] = []
    original = type(entrance).forward

    def forward(module: nn.Module, first: Tensor, *others: Any, **named: Any) -> Tensor:
        if module is entrance:
            rows.append(first.shape[0])
        return original(module, first, *others, **named)

    type(entrance).forward = forward
    try:
        yield rows
    finally:
        type(entrance).forward = original
