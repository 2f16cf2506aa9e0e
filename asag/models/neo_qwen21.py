"""Qwen-Image 2.1 as Neo runs it, and as the extension qwen2.1-forge-neo does in an older Neo.

Sources: backend/nn/qwen21.py (block_causal_attention, QwenImage21Transformer2DModel) and lib_qwen21/transformer.py. One
stream: text, with reference images between its parts, then the image, of one latent pixel a token. Attention goes in
segments, each over the tokens up to its own end. So only the image's sees the whole sequence, and it comes as the
queries of the image with the keys of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from asag.models.base import AttentionLayer, HostModel, TokenGrid
from asag.models.host_attention import HostTransformer, SequenceLayer, numbered
from asag.operators import Operator


class NeoQwen21(HostTransformer):
    """layer.N is transformer_blocks[N]."""

    name = "Qwen-Image 2.1 (Neo)"
    kinds: tuple[str, ...] = ("Qwen-Image 2.1",)
    class_name = "QwenImage21Transformer2DModel"
    homes = (("backend.nn.qwen21", "attention_function"), ("lib_qwen21.transformer", "attention_function"))

    def layers(self, model: HostModel) -> Sequence[AttentionLayer]:
        return numbered("layer", [block.attn for block in model.transformer_blocks], patch=1)

    def stages(self, model: HostModel) -> list[nn.Module]:
        return [*model.transformer_blocks, model.norm_out, model.proj_out]

    def attend(
        self,
        layer: SequenceLayer,
        operator: Operator,
        token_grid: TokenGrid,
        given: tuple[Any, ...],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
    ) -> Tensor | None:
        sequence, images = given[0].shape[1], token_grid.image_tokens(layer.patch)
        if (query.shape[2], key.shape[2]) != (images, sequence):
            return None
        # The operator takes a query for each key: those of text and reference images are made up and left out again.
        image = slice(sequence - images, sequence)
        whole = torch.zeros_like(key)
        whole[:, :, image] = query
        return operator.joint(whole, key, value, image, token_grid.grid(images), mask)[:, :, image]
