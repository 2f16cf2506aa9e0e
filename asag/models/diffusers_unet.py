"""The UNet of diffusers (SD1.x, SD2, SDXL), with the block numbers of the ldm layout.

Sources: diffusers/models/unets/unet_2d_condition.py (UNet2DConditionModel: down_blocks, mid_block, up_blocks),
unet_2d_blocks.py, models/attention.py (BasicTransformerBlock.attn1) and models/attention_processor.py (Attention,
AttnProcessor2_0, FusedAttnProcessor2_0). Nothing is imported from there: models are known by their class names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from asag.blocks import Address, BlockList, parse_blocks
from asag.models.base import (
    AttentionLayer,
    Forward,
    HostModel,
    TokenGrid,
    UnsupportedModel,
    has_class,
    join_heads,
    masks_nothing,
    split_heads,
)
from asag.operators import Operator

# Processors that compute SoftMax attention of to_q, to_k and to_v and nothing else, each by another kernel.
ORDINARY_PROCESSORS = frozenset(
    {
        "AttnProcessor",
        "AttnProcessor2_0",
        "AttnProcessorNPU",
        "FusedAttnProcessor2_0",
        "SlicedAttnProcessor",
        "XFormersAttnProcessor",
        "XLAFlashAttnProcessor2_0",
    }
)


class DiffusersUnet:
    """Addresses are those of the ldm UNet, so that out.3 is the same layer in every host.

    `in.0` is conv_in; from there each resnet of a down block and each downsampler takes a number, and an attention
    has the number of the resnet that it follows. `out.N` counts the resnets of the up blocks; upsamplers take none.
    """

    name = "diffusers UNet2DConditionModel (SD1.x, SD2, SDXL)"
    kinds: tuple[str, ...] = ()
    reason = "the middle block, as in the papers on PAG and SEG"
    experimental = False
    row_methods: tuple[str, ...] = ()

    def default_blocks(self, addresses: Sequence[Address]) -> BlockList:
        return parse_blocks("mid")

    def matches(self, model: HostModel) -> bool:
        return has_class(model, "UNet2DConditionModel")

    def layers(self, model: HostModel) -> list[AttentionLayer]:
        found: list[AttentionLayer] = []
        number = 1
        for block in model.down_blocks:
            for index in range(len(block.resnets)):
                found += _layers_of("in", number, _attentions(block)[index : index + 1])
                number += 1
            number += len(getattr(block, "downsamplers", None) or ())
        if model.mid_block is not None:
            found += _layers_of("mid", 0, _attentions(model.mid_block))
        number = 0
        for block in model.up_blocks:
            for index in range(len(block.resnets)):
                found += _layers_of("out", number, _attentions(block)[index : index + 1])
                number += 1
        return found

    def stages(self, model: HostModel) -> list[nn.Module]:
        blocks = [*model.down_blocks, model.mid_block, *model.up_blocks]
        last = [model.conv_norm_out, model.conv_act, model.conv_out]
        parts = (part for block in blocks if block is not None for part in _parts(block))
        return [model.conv_in, *parts, *(module for module in last if module is not None)]

    def replacement(
        self, layer: AttentionLayer, original: Forward, operator: Operator, token_grid: TokenGrid
    ) -> Forward:
        attention: HostModel = layer.module
        processor = type(attention.processor).__name__
        if processor not in ORDINARY_PROCESSORS:
            allowed = ", ".join(sorted(ORDINARY_PROCESSORS))
            raise UnsupportedModel(f"{layer.address}: attention processor {processor}; allowed: {allowed}")

        def forward(
            hidden_states: Tensor,
            encoder_hidden_states: Tensor | None = None,
            attention_mask: Tensor | None = None,
            temb: Tensor | None = None,
            **others: Any,
        ) -> Tensor:
            if encoder_hidden_states is not None or not masks_nothing(attention_mask):
                raise ValueError(f"{layer.address}: masked self-attention or one over a text can't be perturbed")
            tokens = hidden_states
            if attention.spatial_norm is not None:
                tokens = attention.spatial_norm(tokens, temb)
            if hidden_states.ndim == 4:
                tokens = tokens.flatten(2).transpose(1, 2)
            if attention.group_norm is not None:
                tokens = attention.group_norm(tokens.transpose(1, 2)).transpose(1, 2)
            query, key, value = _project(attention, tokens, fused=processor == "FusedAttnProcessor2_0")
            out = join_heads(operator.plain(query, key, value, token_grid.grid(query.shape[2]))).to(query.dtype)
            for module in attention.to_out:
                out = module(out)
            if hidden_states.ndim == 4:
                out = out.transpose(1, 2).reshape(hidden_states.shape)
            if attention.residual_connection:
                out = out + hidden_states
            scaled: Tensor = out / attention.rescale_output_factor
            return scaled

        return forward


def _project(attention: HostModel, tokens: Tensor, fused: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, (batch, heads, tokens, head_dim), of tokens (batch, tokens, channels)."""
    if fused:
        projected = torch.chunk(attention.to_qkv(tokens), 3, dim=-1)
    else:
        projected = attention.to_q(tokens), attention.to_k(tokens), attention.to_v(tokens)
    query, key, value = (split_heads(each, attention.heads) for each in projected)
    if attention.norm_q is not None:
        query = attention.norm_q(query)
    if attention.norm_k is not None:
        key = attention.norm_k(key)
    return query, key, value


def _attentions(block: HostModel) -> list[Any]:
    """The attention of each resnet of a block; none in blocks without attention."""
    return list(getattr(block, "attentions", None) or ())


def _layers_of(part: str, number: int, transformers: Sequence[HostModel]) -> Iterator[AttentionLayer]:
    """The attn1 of each transformer block that attends to the image (`only_cross_attention` makes it see the text)."""
    attentions = (
        child.attn1
        for transformer in transformers
        if transformer is not None
        for child in transformer.modules()
        if isinstance(getattr(child, "attn1", None), nn.Module) and not child.attn1.is_cross_attention
    )
    for index, attention in enumerate(attentions):
        yield AttentionLayer(Address(part, number, index), attention)


def _parts(block: HostModel) -> list[Any]:
    """What a block of the UNet runs, in order (diffusers/models/unets/unet_2d_blocks.py)."""
    attentions = _attentions(block)
    found = []
    for index, resnet in enumerate(block.resnets):
        found += [resnet, *attentions[index : index + 1]]
    for name in ("downsamplers", "upsamplers"):
        found += getattr(block, name, None) or []
    return [part for part in found if part is not None]
