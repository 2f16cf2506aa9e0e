"""A trained model of renderings as a stock diffusers pipeline, with captions for prompts.

As with the drawn shapes' model, captions go in as `prompt_embeds`, and the latents that come out are the picture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from asag.hosts.diffusers_pipeline import asag_guidance
from asag.lab.embedded import shipped, shipped_mmdit
from asag.lab.renderings.architecture import LATENT_SHAPE
from asag.lab.renderings.captions import Vocabulary, Words, null_rows
from asag.lab.renderings.source import TABLE, VOCABULARY

MODEL = Path(__file__).parent / "model"  # the UNet, with the judge of both models
MODEL_MMDIT = Path(__file__).parent / "model_mmdit"
_BATCH = {"cpu": 32, "cuda": 500}  # pictures in one call of the pipeline: more are no faster
SOLVER_STEPS = 14
CFG = 3.0


class Captions:
    """Captions as prompt embeddings, by the words that the model in `folder` has learnt."""

    def __init__(self, folder: Path) -> None:
        known = json.loads((folder / VOCABULARY).read_text(encoding="utf-8"))
        self.vocabulary = Vocabulary(known["groups"], known["words"])
        self.table = Words(len(self.vocabulary)).requires_grad_(False)
        self.table.load_state_dict({name: value.float() for name, value in load_file(folder / TABLE).items()})

    def embed(self, captions: Sequence[str]) -> torch.Tensor:
        """(B,11,128) float32; a ValueError names a caption whose words the model doesn't know."""
        tokens: torch.Tensor = self.table(self._rows(captions))
        return tokens

    def null(self, count: int) -> torch.Tensor:
        """(count,11,128) float32: no caption, for `negative_prompt_embeds`."""
        tokens: torch.Tensor = self.table(null_rows(torch.zeros(1, len(self.table.place), dtype=torch.long)))
        return tokens.expand(count, -1, -1)

    def _rows(self, captions: Sequence[str]) -> torch.Tensor:
        return torch.tensor([self.vocabulary.rows(caption) for caption in captions])


def load_pipeline(folder: Path, **options: Any) -> DiffusionPipeline:
    """The UNet's or the MMDiT's pipeline; `options` are those of the embedded models' `load_pipeline`."""
    kind = shipped_mmdit if (folder / "transformer").exists() else shipped
    return kind.load_pipeline(folder=folder, **options)


def fast_pipeline(folder: Path, **options: Any) -> DiffusionPipeline:
    """The same with DPM++ 2M, for SOLVER_STEPS steps."""
    pipeline = load_pipeline(folder, **options)
    solver_of = (shipped_mmdit if hasattr(pipeline, "transformer") else shipped).solver_of
    pipeline.scheduler = solver_of(pipeline.scheduler)
    return pipeline


def batch_on(device: torch.device) -> int:
    """How many pictures a device makes at once."""
    return _BATCH[device.type]


def start_noise(count: int, seed: int, half_size: bool = False) -> torch.Tensor:
    """(count,12,32,32) float32 standard normal latents to start from; the same for a seed on every device.

    (count,12,16,16) where `half_size`, for a UNet that has seen small pictures only.
    """
    channels, height, width = LATENT_SHAPE
    shape = (channels, height // 2, width // 2) if half_size else LATENT_SHAPE
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def sample(
    pipeline: DiffusionPipeline,
    captions: Captions,
    texts: Sequence[str],
    *,
    seed: int = 0,
    half_size: bool = False,
    **arguments: Any,
) -> torch.Tensor:
    """Pictures (B,3,64,64) float32 in [-1,1] on the CPU; `arguments` go to the pipeline's call.

    Where `half_size`, they are made at 32x32 and enlarged.
    """
    batch = batch_on(pipeline.device)
    parts = zip(
        captions.embed(texts).split(batch),
        captions.null(len(texts)).split(batch),
        start_noise(len(texts), seed, half_size).split(batch),
        strict=True,
    )
    images = torch.cat([shipped.sample_from(pipeline, *part, **arguments) for part in parts])
    return F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False) if half_size else images


def guided_sample(
    pipeline: DiffusionPipeline, captions: Captions, texts: Sequence[str], settings: Mapping[str, Any], **arguments: Any
) -> torch.Tensor:
    """The same with ASAG's `settings`; none: without ASAG."""
    with asag_guidance(pipeline, **settings) if settings else nullcontext():
        return sample(pipeline, captions, texts, **arguments)
