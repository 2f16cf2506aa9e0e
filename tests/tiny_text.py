"""Tiny random pipelines with text encoders, and a tiny CLIP saved as a real one is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from tests.tiny_diffusers import TEXT_WIDTH, lively, sd3_pipe, sdxl_pipe, vae

TOKENS = 24


def tokenizer() -> CLIPTokenizer:
    """One token for each byte; `</w>` ends a word, as in CLIP's."""
    letters = sorted(ByteLevel.alphabet())
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({token: number for number, token in enumerate(vocabulary)}, [], model_max_length=TOKENS)


def text_config(width: int, projection: int) -> CLIPTextConfig:
    words = len(tokenizer())
    return CLIPTextConfig(
        vocab_size=words,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        hidden_size=width,
        intermediate_size=16,
        projection_dim=projection,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
    )


def text_encoder(cls: type, width: int, projection: int = 8, seed: int = 3) -> Any:
    return lively(cls(text_config(width, projection)), seed)


def sdxl() -> Any:
    """The widths of both encoders' states add up to those of the UNet's attention."""
    return sdxl_pipe(
        vae=lively(vae()),
        text_encoder=text_encoder(CLIPTextModel, TEXT_WIDTH // 2),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection, TEXT_WIDTH // 2, TEXT_WIDTH),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
    )


def sd3() -> Any:
    """Without the third encoder, as SD3 can be run."""
    half = TEXT_WIDTH // 2
    return sd3_pipe(
        vae=lively(vae()),
        text_encoder=text_encoder(CLIPTextModelWithProjection, half, half),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection, half, half, seed=4),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
    )


def save_clip(folder: Path) -> None:
    text = text_config(16, 8).to_dict()
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    ).to_dict()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    model.save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPProcessor(CLIPImageProcessor(**size), tokenizer()).save_pretrained(folder)
