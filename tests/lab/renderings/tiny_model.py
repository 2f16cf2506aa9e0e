"""A tiny random model of renderings in a folder, as `asag train --data` exports one."""

from pathlib import Path

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, UNet2DConditionModel

from asag.lab.renderings import names
from asag.lab.renderings.architecture import LATENT_SHAPE
from asag.lab.renderings.captions import TOKEN_DIM
from asag.lab.renderings.judge import Judge, save_judge
from asag.lab.renderings.source import Renderings
from tests.tiny_diffusers import lively

HEADS = 2


def unet():
    return UNet2DConditionModel(
        sample_size=LATENT_SHAPE[1],
        in_channels=LATENT_SHAPE[0],
        out_channels=LATENT_SHAPE[0],
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=TOKEN_DIM,
        attention_head_dim=(HEADS, HEADS),  # which diffusers reads as the number of heads
        norm_num_groups=4,
    )


def transformer():
    return SD3Transformer2DModel(
        sample_size=LATENT_SHAPE[1],
        patch_size=2,
        in_channels=LATENT_SHAPE[0],
        out_channels=LATENT_SHAPE[0],
        num_layers=2,
        num_attention_heads=HEADS,
        attention_head_dim=8,
        joint_attention_dim=TOKEN_DIM,
        caption_projection_dim=8 * HEADS,
        pooled_projection_dim=TOKEN_DIM,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )


def written(folder: Path, data: Path, name: str, network: torch.nn.Module) -> Path:
    torch.manual_seed(0)
    kept = names.read(data)
    source = Renderings(kept, torch.device("cpu"))
    lively(network).save_pretrained(folder / name)
    source.save(source.conditions(), folder)
    save_judge(Judge({each.name: each.group for each in kept}).eval(), folder)
    return folder


def write_unet(folder: Path, data: Path) -> Path:
    """A UNet, its judge and its words; `data` is the folder of the renderings that they are of."""
    written(folder, data, "unet", unet())
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample_range=1.1, steps_offset=1)
    scheduler.save_pretrained(folder / "scheduler")
    return folder


def write_mmdit(folder: Path, data: Path) -> Path:
    """The same with an MMDiT."""
    written(folder, data, "transformer", transformer())
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    return folder
