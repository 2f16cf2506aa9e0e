"""The two architectures as training needs them, see `asag.lab.embedded.subjects`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from diffusers import ModelMixin
from diffusers.models.attention_processor import Attention

from asag.lab.embedded.subjects import MMDiTSubject, Subject, UNetSubject
from asag.lab.renderings.architecture import SHIFT, new_transformer, new_unet

SNR_LIMIT = 5.0


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
        out: torch.Tensor = attn.to_out[0](_attend(query, key, value, attn.scale))
        return out


class PlainJointAttention:
    """The same for SD3's joint blocks: image and caption attend to both."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden_states (B,N,C) and encoder_hidden_states (B,T,C), each of its own shape again."""

        def split(part: torch.Tensor) -> torch.Tensor:
            heads: torch.Tensor = part.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return heads

        caption = encoder_hidden_states
        own = attn.norm_q(split(attn.to_q(hidden_states))), attn.norm_k(split(attn.to_k(hidden_states)))
        others = attn.norm_added_q(split(attn.add_q_proj(caption))), attn.norm_added_k(split(attn.add_k_proj(caption)))
        query, key = (torch.cat(pair, 2) for pair in zip(own, others, strict=True))
        value = torch.cat([split(attn.to_v(hidden_states)), split(attn.add_v_proj(caption))], 2)
        image, text = _attend(query, key, value, attn.scale).split([hidden_states.shape[1], caption.shape[1]], 1)
        image = attn.to_out[0](image)
        return image, text if attn.context_pre_only else attn.to_add_out(text)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Heads (B,H,N,D) -> (B,N,H*D), in one dtype throughout."""
    scores = (scale * query) @ key.transpose(-1, -2)
    return (scores.softmax(-1, dtype=scores.dtype) @ value).transpose(1, 2).flatten(2)


def _with(processor: PlainAttention | PlainJointAttention, build: Callable[[], ModelMixin]) -> ModelMixin:
    model = build()
    model.set_attn_processor(processor)
    return model


def subject(name: str, device: torch.device) -> Subject:
    """`unet` or `mmdit`, to be trained on `device`."""
    on_cpu = device.type == "cpu"
    if name == "mmdit":
        transformer = partial(_with, PlainJointAttention(), new_transformer) if on_cpu else new_transformer
        return MMDiTSubject(transformer, SHIFT)
    return UNetSubject(partial(_with, PlainAttention(), new_unet) if on_cpu else new_unet, snr_limit=SNR_LIMIT)
