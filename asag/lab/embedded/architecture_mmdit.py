"""What the small MMDiT is made of: Stable Diffusion 3's transformer and flow matching schedule, untrained."""

from __future__ import annotations

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

from asag.lab.embedded import drawings
from asag.lab.embedded.architecture import TOKEN_DIM

LAYERS = 6
_HEADS, _HEAD_DIM = 4, 32
_PATCH = 2  # of latents, so 4 pixels: 64 image tokens
# What is where is decided at high noise (see architecture.py); this shift doubles noise over signal.
SHIFT = 2.0


def new_transformer() -> SD3Transformer2DModel:
    """12x16x16 in and out; six joint blocks over 64 image tokens and the condition tokens, queries and keys normed."""
    return transformer_of(drawings.LATENT_SHAPE, TOKEN_DIM, LAYERS, _HEADS)


def transformer_of(
    latent_shape: tuple[int, int, int], token_dim: int, layers: int, heads: int
) -> SD3Transformer2DModel:
    """An untrained MMDiT of latents (channels, side, side) and condition tokens of `token_dim`; heads of 32."""
    channels, side, _ = latent_shape
    return SD3Transformer2DModel(
        sample_size=side,
        patch_size=_PATCH,
        in_channels=channels,
        out_channels=channels,
        num_layers=layers,
        num_attention_heads=heads,
        attention_head_dim=_HEAD_DIM,
        joint_attention_dim=token_dim,
        caption_projection_dim=heads * _HEAD_DIM,
        pooled_projection_dim=token_dim,
        pos_embed_max_size=side // _PATCH,
        qk_norm="rms_norm",
    )


def new_flow_scheduler(shift: float = SHIFT) -> FlowMatchEulerDiscreteScheduler:
    """Straight paths from noise to picture, with the noise that the model was trained on."""
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def pooled(tokens: torch.Tensor) -> torch.Tensor:
    """Condition tokens (B,T,D) -> the vector (B,D) that modulates every block, as SD3's pooled text embedding."""
    return tokens.mean(1)
