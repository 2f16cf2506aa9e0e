"""AUTOMATIC1111's model: its UNet with what the host puts around self-attention, and what one has to know of it."""

from __future__ import annotations

import sys
from copy import copy
from typing import Any

from modules import sd_unet, shared
from modules.hypernetworks import hypernetwork
from modules.sd_samplers_timesteps import CompVisTimestepsDenoiser, CompVisTimestepsVDenoiser
from torch import nn

from asag.hosts.loaded import loaded_model
from asag.hosts.refused import Refused
from asag.models.base import AttentionLayer, Forward, TokenGrid
from asag.models.ldm_unet import LdmUnet
from asag.operators import Operator


class A1111Unet(LdmUnet):
    """The host's UNet, with what it puts around self-attention: hypernetworks and, if switched on, HyperTile."""

    def __init__(self) -> None:
        super().__init__(lambda context: hypernetwork.apply_hypernetworks(shared.loaded_hypernetworks, context))

    def replacement(
        self, layer: AttentionLayer, original: Forward, operator: Operator, token_grid: TokenGrid
    ) -> Forward:
        forward = super().replacement(layer, original, operator, token_grid)
        # HyperTile (extensions-builtin/hypertile) hooks its layers' forwards: the weakened attention belongs inside,
        # where the tiles come in place of the images.
        tiling = getattr(layer.module, "__webui_hypertile_params", None)
        if tiling is None or not tiling.enabled:
            return forward
        tiling = copy(tiling)
        tiling.forward = forward
        tiled: Forward = sys.modules["hypertile"].self_attn_forward(tiling)
        return tiled


FAMILY = A1111Unet()


def is_timestep_sampler(inner_model: nn.Module) -> bool:
    """Whether `inner_model` predicts noise at integer timesteps (modules/sd_samplers_timesteps.py: DDIM, PLMS, UniPC)
    rather than a denoised picture at a sigma."""
    return isinstance(inner_model, (CompVisTimestepsDenoiser, CompVisTimestepsVDenoiser))


def rows_of(cond: Any) -> int:
    """The number of rows of a text conditioning: a tensor, or SDXL's dict of tensors."""
    rows: int = (cond["crossattn"] if isinstance(cond, dict) else cond).shape[0]
    return rows


def unet() -> nn.Module:
    """The UNet that the host is running now: refiner and checkpoint switches replace it in the middle of a run.

    Raises Refused when it isn't one that can be perturbed.
    """
    if sd_unet.current_unet is not None:
        raise Refused("ASAG can't guide an accelerated UNet (TensorRT and the like): set SD Unet to None", 422)
    model: nn.Module = loaded_model().model.diffusion_model
    if not FAMILY.matches(model):
        raise Refused(f"ASAG can't guide a {type(model).__name__}; allowed: {FAMILY.name}", 422)
    return model
