"""Qwen-Image as Neo runs it.

Sources: backend/nn/qwen.py (QwenImageTransformerBlock, Attention) and, for Nunchaku's weights, backend/nn/svdq.py
(NunchakuQwenImageTransformer2DModel): text tokens first, then the image's, then those of reference images, which are
kept like text.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from asag.models.base import AttentionLayer, HostModel, UnsupportedModel
from asag.models.host_attention import HostTransformer, numbered


class NeoQwen(HostTransformer):
    """joint.N is transformer_blocks[N]."""

    name = "Qwen-Image (Neo)"
    kinds: tuple[str, ...] = ("Qwen-Image",)
    class_name = "QwenImageTransformer2DModel"
    homes = (("backend.nn.qwen", "attention_function"), ("backend.nn.svdq", "attention_function"))

    def matches(self, model: HostModel) -> bool:
        """Raises UnsupportedModel for Nunchaku's CPU offload, which runs copies of the blocks in two buffers."""
        if not super().matches(model):
            return False
        if getattr(model, "offload", False):
            raise UnsupportedModel(
                f"model: {type(model).__name__} runs its blocks in buffers, where attention can't be weakened; "
                "allowed: Nunchaku's CPU Offload switched off, in the settings"
            )
        return True

    def layers(self, model: HostModel) -> Sequence[AttentionLayer]:
        return numbered("joint", [block.attn for block in model.transformer_blocks], patch=model.patch_size)

    def stages(self, model: HostModel) -> list[nn.Module]:
        return [*model.transformer_blocks, model.norm_out, model.proj_out]
