"""What the models of renderings are made of: UNet and MMDiT over 12x32x32 latents, untrained."""

from __future__ import annotations

from diffusers import SD3Transformer2DModel, UNet2DConditionModel

from asag.lab.embedded.architecture_mmdit import transformer_of
from asag.lab.renderings.captions import TOKEN_DIM
from asag.lab.renderings.pictures import SIDE

LATENT_SHAPE = (12, SIDE // 2, SIDE // 2)  # each 2x2 block of pixels folded into channels; there is no VAE
SHIFT = 3.0  # of the flow's noise over signal: what is where is decided at high noise
_CHANNELS = (64, 160)
_HEAD_DIM = 32
_HEADS, _LAYERS = 5, 7  # of the MMDiT


def new_unet() -> UNet2DConditionModel:
    """Two levels, as the outer ones of SDXL: 32x32 without attention, 16x16 with several transformer blocks.

    The middle block has 256 tokens too. As in SDXL, a summary of the caption is added to the time's embedding.
    """
    return UNet2DConditionModel(
        sample_size=LATENT_SHAPE[1],
        in_channels=LATENT_SHAPE[0],
        out_channels=LATENT_SHAPE[0],
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=_CHANNELS,
        layers_per_block=1,
        transformer_layers_per_block=(1, 2),
        # One in each of the two layers on the way up.
        reverse_transformer_layers_per_block=[1, 1],
        cross_attention_dim=TOKEN_DIM,
        # diffusers reads this argument as the number of heads.
        attention_head_dim=tuple(channels // _HEAD_DIM for channels in _CHANNELS),
        norm_num_groups=16,
        use_linear_projection=True,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def new_transformer() -> SD3Transformer2DModel:
    """Seven joint blocks over 256 image tokens and the words, queries and keys normed."""
    return transformer_of(LATENT_SHAPE, TOKEN_DIM, _LAYERS, _HEADS)
