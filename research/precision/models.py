"""The models that half precision is tried on: the embedded ones, and a random Flux with attention far from uniform."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor

from asag.hosts.diffusers_models import denoiser_of
from asag.lab.embedded import drawings, shipped, shipped_mmdit
from asag.lab.embedded.architecture_mmdit import pooled

_IMAGES = 4
Orders = Sequence[Sequence[int]]  # batches of images
TOGETHER, BACKWARDS, ALONE = [[0, 1, 2, 3]], [[3, 2, 1, 0]], [[0], [1], [2], [3]]
_SIDE = 16  # Flux's image tokens in a row
_FLUX_WIDTH = 128
_FLUX_STEPS = 8
_QUERY_KEY_GAIN = 1.6  # of Flux's norms of queries and keys; the logits' spread is its square
_TIME = 500  # of 1000


@dataclass(frozen=True)
class Built:
    """A pipeline in one dtype, the rows that its model is called with (those of no caption first), and the guidance.

    `sample(orders)` runs the pipeline with CFG on batches of these images and gives the finished latents (images, …)
    float64 in their own order.
    """

    pipeline: DiffusionPipeline
    call: dict[str, Tensor]
    blocks: str
    scale: float
    sample: Callable[[Orders], Tensor]


def build(name: str, dtype: torch.dtype) -> Built:
    """`name` is one of NAMES. Weights and inputs are rounded to `dtype`, and are the same for every dtype before it."""
    return BUILDERS[name](dtype)


def widened(built: Built) -> Built:
    """The same with the rounded weights and inputs in float64; it can be called, not sampled."""
    pipeline = copy.copy(built.pipeline)
    network = copy.deepcopy(denoiser_of(built.pipeline)).double()
    part = "transformer" if getattr(pipeline, "unet", None) is None else "unet"
    setattr(pipeline, part, network)
    call = {key: value.double() if value.is_floating_point() else value for key, value in built.call.items()}
    return replace(built, pipeline=pipeline, call=call)


def prediction(built: Built) -> Tensor:
    with torch.no_grad():
        rows: Tensor = denoiser_of(built.pipeline)(**built.call, return_dict=False)[0]
    return rows


def _labels() -> Tensor:
    return drawings.draw(_IMAGES, torch.Generator().manual_seed(1)).labels


def _noisy(clean: Tensor, share: float) -> Tensor:
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    noisy: Tensor = (1 - share) ** 0.5 * clean + share**0.5 * noise
    return noisy


def _drawn() -> Tensor:
    return drawings.to_latents(drawings.draw(_IMAGES, torch.Generator().manual_seed(1)).images)


def _in_own_order(orders: Orders, batch: Callable[[Sequence[int]], Tensor]) -> Tensor:
    images = torch.cat([batch(order) for order in orders]).double()
    return images[torch.tensor([image for order in orders for image in order]).argsort()]


def _sampler(pipeline: DiffusionPipeline, steps: int, folder: Path) -> Callable[[Orders], Tensor]:
    tokens, null = shipped.embed_labels(_labels(), folder), shipped.null_embeds(_IMAGES, folder)
    noise = shipped.start_noise(_IMAGES, 3)
    arguments: dict[str, Any] = {"guidance_scale": 2.0, "num_inference_steps": steps}

    def batch(order: Sequence[int]) -> Tensor:
        return shipped.sample_from(pipeline, tokens[order], null[order], noise[order], **arguments)

    return lambda orders: _in_own_order(orders, batch)


def _twice(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows])


def _tokens(folder: Path) -> Tensor:
    return torch.cat([shipped.null_embeds(_IMAGES, folder), shipped.embed_labels(_labels(), folder)])


def _unet(dtype: torch.dtype) -> Built:
    pipeline = shipped.load_pipeline(dtype=dtype)
    pipeline.scheduler = shipped.solver_of(pipeline.scheduler)
    call = {
        "sample": _twice(_noisy(_drawn(), 0.5)).to(dtype),
        "timestep": torch.full((2 * _IMAGES,), _TIME),
        "encoder_hidden_states": _tokens(shipped.MODEL).to(dtype),
    }
    return Built(pipeline, call, "mid", 1.0, _sampler(pipeline, shipped.SOLVER_STEPS, shipped.MODEL))


def _mmdit(dtype: torch.dtype) -> Built:
    pipeline = shipped_mmdit.load_pipeline(dtype=dtype)
    pipeline.scheduler = shipped_mmdit.solver_of(pipeline.scheduler)
    tokens = _tokens(shipped_mmdit.MODEL)
    call = {
        "hidden_states": _twice(_noisy(_drawn(), 0.5)).to(dtype),
        "timestep": torch.full((2 * _IMAGES,), float(_TIME)).to(dtype),
        "encoder_hidden_states": tokens.to(dtype),
        "pooled_projections": pooled(tokens).to(dtype),
    }
    return Built(pipeline, call, "auto", 1.0, _sampler(pipeline, shipped_mmdit.SOLVER_STEPS, shipped_mmdit.MODEL))


def _flux_model() -> FluxTransformer2DModel:
    torch.manual_seed(0)
    heads = 2
    model = FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=_FLUX_WIDTH // heads,
        num_attention_heads=heads,
        joint_attention_dim=_FLUX_WIDTH,
        pooled_projection_dim=_FLUX_WIDTH,
        axes_dims_rope=(16, 24, 24),
    )
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        elif name.endswith(("norm_q.weight", "norm_k.weight", "norm_added_q.weight", "norm_added_k.weight")):
            torch.nn.init.constant_(parameter, _QUERY_KEY_GAIN)
    return model.eval().requires_grad_(False)


def _flux(dtype: torch.dtype) -> Built:
    parts = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    network = _flux_model().to(dtype)
    pipeline = FluxPipeline(scheduler=FlowMatchEulerDiscreteScheduler(), transformer=network, **dict.fromkeys(parts))
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randn(_IMAGES, 12, _FLUX_WIDTH, generator=generator).to(dtype)
    summary = torch.randn(_IMAGES, _FLUX_WIDTH, generator=generator).to(dtype)
    noise = torch.randn(_IMAGES, _SIDE**2, 64, generator=generator).to(dtype)
    rows, columns = torch.meshgrid(torch.arange(_SIDE), torch.arange(_SIDE), indexing="ij")
    call = {
        "hidden_states": _twice(noise),
        "timestep": torch.full((2 * _IMAGES,), _TIME / 1000).to(dtype),
        "encoder_hidden_states": torch.cat([tokens.flip(0), tokens]),
        "pooled_projections": torch.cat([summary.flip(0), summary]),
        "img_ids": torch.stack([torch.zeros(_SIDE, _SIDE), rows, columns], -1).reshape(-1, 3).to(dtype),
        "txt_ids": torch.zeros(12, 3).to(dtype),
    }

    def batch(order: Sequence[int]) -> Tensor:
        given = {"prompt_embeds": tokens[order], "pooled_prompt_embeds": summary[order], "latents": noise[order]}
        size = {"height": 16 * _SIDE, "width": 16 * _SIDE, "num_inference_steps": _FLUX_STEPS}
        images: Tensor = pipeline(**given, **size, output_type="latent").images
        return images

    return Built(pipeline, call, "auto", 1.0, lambda orders: _in_own_order(orders, batch))


BUILDERS: dict[str, Callable[[torch.dtype], Built]] = {"unet": _unet, "mmdit": _mmdit, "flux (random)": _flux}
NAMES = tuple(BUILDERS)
