"""What the embedded model is made of: UNet, noise schedule and the table of condition tokens, untrained."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn

from asag.lab.embedded import drawings

TOKEN_DIM = 64
TOKENS = 3  # a constant start token, then one token per object
START, NULL = drawings.PAIRS + 1, drawings.PAIRS + 2  # rows of the table after the pairs and 'nothing'
ROWS = drawings.PAIRS + 3
STEPS = 1000
_CHANNELS = (32, 96)
_HEAD_DIM = 16
# Large flat objects stay visible under far more noise than their pixels would suggest, so what is where is
# decided at high noise; stretching sigma puts more of the timesteps there.
_NOISE_STRETCH = 2.0


def new_unet() -> UNet2DConditionModel:
    """12x16x16 in and out; self- and cross-attention at 16x16, at 8x8 and in the middle block (8x8)."""
    return UNet2DConditionModel(
        sample_size=drawings.LATENT_SHAPE[1],
        in_channels=drawings.LATENT_SHAPE[0],
        out_channels=drawings.LATENT_SHAPE[0],
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        # No attention in the last block: it costs the most there, and training time is what limits quality.
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=_CHANNELS,
        layers_per_block=1,
        cross_attention_dim=TOKEN_DIM,
        # diffusers reads this argument as the number of heads.
        attention_head_dim=tuple(channels // _HEAD_DIM for channels in _CHANNELS),
        # The default of 32 groups would normalise every channel alone and so erase mean colours.
        norm_num_groups=8,
    )


def new_scheduler() -> DDIMScheduler:
    """v-prediction on a cosine schedule with stretched noise, from which the last step leaves no signal."""
    time = torch.arange(1, STEPS + 1, dtype=torch.float64) / STEPS
    alpha_bar = 1 / (1 + (_NOISE_STRETCH * torch.tan(time * torch.pi / 2)) ** 2)
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    return DDIMScheduler(
        num_train_timesteps=STEPS,
        trained_betas=[round(beta, 8) for beta in (1 - alpha_bar / before).tolist()],
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        # Guidance overshoots the range of pictures; without a cut their contrast is 4.5 % too high at CFG 2.
        # Cutting at 1 exactly would be too strict: it tints white objects.
        clip_sample=True,
        clip_sample_range=1.1,
        steps_offset=1,  # without effect on trailing steps, but diffusers warns about anything else
    )


class Conditions(nn.Module):
    """Trainable condition tokens; an object's token is the sum of its shape's and its colour's vector."""

    def __init__(self) -> None:
        super().__init__()
        self.shape = nn.Parameter(0.7 * torch.randn(len(drawings.SHAPES), TOKEN_DIM))
        self.colour = nn.Parameter(0.7 * torch.randn(len(drawings.COLOURS), TOKEN_DIM))
        self.special = nn.Parameter(torch.randn(3, TOKEN_DIM))

    def table(self) -> torch.Tensor:
        """(ROWS, TOKEN_DIM): every pair as `drawings.pair_index` counts them, then nothing, start and null."""
        pairs = self.shape[:, None] + self.colour[None]
        return torch.cat([pairs.flatten(0, 1), self.special])


def token_rows(labels: torch.Tensor, dropped: torch.Tensor | None = None) -> torch.Tensor:
    """labels (B,2,2) -> rows of the table (B,TOKENS); where `dropped` (B,) bool, the objects become NULL."""
    objects = drawings.pair_index(labels)
    if dropped is not None:
        objects = torch.where(dropped[:, None], NULL, objects)
    return torch.cat([torch.full_like(objects[:, :1], START), objects], 1)
