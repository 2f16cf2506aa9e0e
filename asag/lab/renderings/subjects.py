"""The two architectures as training needs them, see `asag.lab.embedded.subjects`."""

from __future__ import annotations

import torch
from diffusers import ModelMixin, UNet2DConditionModel
from diffusers.models.attention_processor import Attention

from asag.lab.embedded.subjects import MMDiTSubject, Subject, UNetSubject
from asag.lab.renderings.architecture import SHIFT, new_transformer, new_unet

_SNR_LIMIT = 5.0


class PlainAttention:
    """Attention by two products of matrices. On a CPU it trains a third faster than torch's own fused one."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """hidden_states (B,N,C), encoder_hidden_states (B,T,D) or None -> (B,N,C)."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            part.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for part in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        scores = (attn.scale * query) @ key.transpose(-1, -2)
        mixed = scores.softmax(-1, dtype=scores.dtype) @ value
        out: torch.Tensor = attn.to_out[0](mixed.transpose(1, 2).flatten(2))
        return out


def _unet_for_cpu() -> ModelMixin:
    unet: UNet2DConditionModel = new_unet()
    unet.set_attn_processor(PlainAttention())
    return unet


def subject(name: str, device: torch.device) -> Subject:
    """`unet` or `mmdit`, to be trained on `device`."""
    if name == "mmdit":
        return MMDiTSubject(new_transformer, SHIFT)
    return UNetSubject(_unet_for_cpu if device.type == "cpu" else new_unet, snr_limit=_SNR_LIMIT)
