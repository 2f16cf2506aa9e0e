"""Qwen-Image as Neo runs it.

Sources: backend/nn/qwen.py (QwenImageTransformerBlock, Attention) and, for Nunchaku's weights, backend/nn/svdq.py
(NunchakuQwenImageTransformer2DModel): text tokens first, then the image's, then those of reference images, which are
kept like text.
"""

from __future__ import annotations

from torch import nn

from asag.models.base import AttentionLayer
from asag.models.host_attention import HostTransformer, numbered


class NeoQwen(HostTransformer):
    """joint.N is transformer_blocks[N]."""

    name = "Qwen-Image (Neo)"
    class_name = "QwenImageTransformer2DModel"
    homes = (("backend.nn.qwen", "attention_function"), ("backend.nn.svdq", "attention_function"))

    def layers(self, model: nn.Module) -> list[AttentionLayer]:
        return numbered("joint", [block.attn for block in model.transformer_blocks], patch=model.patch_size)

    def stages(self, model: nn.Module) -> list[nn.Module]:
        return [*model.transformer_blocks, model.norm_out, model.proj_out]
