"""The shipped model as a stock diffusers pipeline, with captions for prompts and drawings for pictures.

The pipeline has no text encoder and no VAE: captions go in through `embed` as `prompt_embeds`, and the
latents that come out (`output_type="latent"`) are the picture itself, see `to_images`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import load_file

from asag.lab.embedded import drawings
from asag.lab.embedded.architecture import NULL, START, TOKENS, token_rows
from asag.lab.embedded.architecture_mmdit import pooled
from asag.lab.embedded.classifier import Classifier

MODEL = Path(__file__).parent / "model"
SOLVER_STEPS = 14  # of `solver_of`: FD 174 ± 11 of 500 pictures without captions; DDIM with 25: 177 ± 11


def load_unet(
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, folder: Path = MODEL
) -> UNet2DConditionModel:
    """The trained UNet; its files are in half precision and are widened to `dtype`."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype)
    # A third less time on a CPU than with channels first.
    return unet.to(device, memory_format=torch.channels_last).eval()


def load_scheduler(folder: Path = MODEL, **changes: Any) -> DDIMScheduler:
    """The noise schedule that the model was trained with; `changes` replace entries of its configuration."""
    return DDIMScheduler.from_pretrained(folder / "scheduler", **changes)


def solver_of(scheduler: DDIMScheduler) -> DPMSolverMultistepScheduler:
    """DPM-Solver++ (2M), which WebUIs call DPM++ 2M, for the same noise schedule."""
    changes = {"algorithm_type": "dpmsolver++", "solver_order": 2}
    # Thresholding at a quantile of 1 clips, at 1; the shipped DDIM clips at 1.1.
    clipping = {"thresholding": True, "sample_max_value": 1.0, "dynamic_thresholding_ratio": 1.0}
    return DPMSolverMultistepScheduler.from_config(scheduler.config, **changes, **clipping)


def load_pipeline(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    folder: Path = MODEL,
    kind: type[DiffusionPipeline] = StableDiffusionPipeline,
    **components: Any,
) -> DiffusionPipeline:
    """A Stable Diffusion pipeline of class `kind`; `components` are further ones, such as a controlnet."""
    pipeline = kind(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        unet=load_unet(device, dtype, folder),
        scheduler=load_scheduler(folder, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **components,
    )
    # Only now: constructors of pipelines switch clipping off, taking it for a relic in old configurations.
    pipeline.scheduler = load_scheduler(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_classifier(folder: Path = MODEL) -> Classifier:
    """The judge of the samples, in evaluation mode on the CPU."""
    classifier = Classifier()
    classifier.load_state_dict(load_file(folder / "classifier.safetensors"))
    return classifier.eval()


def _table(folder: Path) -> torch.Tensor:
    table: torch.Tensor = load_file(folder / "conditions.safetensors")["table"]
    return table.float()


def embed(captions: list[str], folder: Path = MODEL) -> torch.Tensor:
    """Captions such as 'red disc, blue square' -> prompt embeddings (B,3,64) float32."""
    return embed_labels(torch.stack([drawings.parse_caption(text) for text in captions]), folder)


def embed_labels(labels: torch.Tensor, folder: Path = MODEL) -> torch.Tensor:
    """Labels (B,2,2) as `drawings.draw` gives them -> prompt embeddings (B,3,64) float32."""
    return _table(folder)[token_rows(labels)]


def null_embeds(count: int, folder: Path = MODEL) -> torch.Tensor:
    """(count,3,64) float32: the condition 'no caption', for `negative_prompt_embeds`."""
    rows = torch.tensor([START] + [NULL] * (TOKENS - 1))
    return _table(folder)[rows].expand(count, -1, -1)


def start_noise(count: int, seed: int) -> torch.Tensor:
    """(count,12,16,16) float32 standard normal latents to start from; the same for a seed on every device."""
    return torch.randn(count, *drawings.LATENT_SHAPE, generator=torch.Generator().manual_seed(seed))


def sample(
    pipeline: DiffusionPipeline,
    labels: torch.Tensor,
    *,
    guidance_scale: float = 2.0,
    steps: int = 25,
    seed: int = 0,
    folder: Path = MODEL,
    **arguments: Any,
) -> torch.Tensor:
    """Pictures (B,3,32,32) float32 for labels (B,2,2); further arguments go to the pipeline's call."""
    return sample_from(
        pipeline,
        embed_labels(labels, folder),
        null_embeds(len(labels), folder),
        start_noise(len(labels), seed),
        guidance_scale=guidance_scale,
        num_inference_steps=steps,
        **arguments,
    )


def sample_from(
    pipeline: DiffusionPipeline,
    tokens: torch.Tensor,
    null_tokens: torch.Tensor,
    noise: torch.Tensor,
    **arguments: Any,
) -> torch.Tensor:
    """Pictures (B,3,2H,2W) float32 from condition tokens and those of no caption, (B,T,D), and noise (B,12,H,W).

    The pipeline is the UNet's or the MMDiT's.
    """
    given = {"prompt_embeds": tokens, "negative_prompt_embeds": null_tokens, "latents": noise}
    network = getattr(pipeline, "unet", None)
    if network is None:
        network = pipeline.transformer
        given |= {"pooled_prompt_embeds": pooled(tokens), "negative_pooled_prompt_embeds": pooled(null_tokens)}
    given = {name: value.to(network.device, network.dtype) for name, value in given.items()}
    return to_images(pipeline(**given, output_type="latent", **arguments).images)


def to_images(latents: torch.Tensor) -> torch.Tensor:
    """Latents (B,12,H,W) -> pictures (B,3,2H,2W) float32 in [-1,1] on the CPU."""
    return drawings.from_latents(latents.float().cpu()).clamp(-1, 1)


def to_pil(images: torch.Tensor, scale: int = 1) -> list[Image.Image]:
    """Pictures (B,3,S,S) in [-1,1] -> PIL images, enlarged `scale` times without smoothing."""
    pixels = ((images + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    side = images.shape[-1] * scale
    return [Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST) for picture in pixels]
