"""Anima and Wan as Neo runs them: self-attention over image tokens alone, text by cross-attention.

Sources: backend/nn/anima.py (Block.self_attn) and backend/nn/wan.py (WanAttentionBlock.self_attn). A video's tokens,
those of all its frames, attend to each other, and so the perturbed plan too is over all of them. Frames of reference
follow the video's own and are kept like text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from asag.models.base import AttentionLayer, HostModel, TokenGrid
from asag.models.host_attention import HostTransformer, SequenceLayer, numbered


class ImageTokensAlone(HostTransformer):
    """Base: the sequence is the image's tokens, and those of reference frames after them. layer.N is blocks[N]."""

    def image(
        self, layer: SequenceLayer, token_grid: TokenGrid, tokens: int, given: tuple[Any, ...] = ()
    ) -> slice | None:
        images = token_grid.image_tokens(layer.patch)
        return slice(0, images) if tokens >= images else None


class NeoAnima(ImageTokensAlone):
    """layer.N is blocks[N]."""

    name = "Anima (Neo)"
    kinds: tuple[str, ...] = ("Anima",)
    class_name = "Anima"
    homes = (("backend.nn.anima", "attention_function"),)

    def layers(self, model: HostModel) -> Sequence[AttentionLayer]:
        return numbered("layer", [block.self_attn for block in model.blocks], patch=model.patch_spatial)

    def stages(self, model: HostModel) -> list[nn.Module]:
        return [*model.blocks, model.final_layer]


class NeoWan(ImageTokensAlone):
    """layer.N is blocks[N]."""

    name = "Wan 2.1's class (Neo)"
    kinds: tuple[str, ...] = ("Wan",)
    class_name = "WanModel"
    hint = "; RadialAttention Integrated puts its own there: switch it off"
    homes = (("backend.nn.wan", "attention_function"),)

    def layers(self, model: HostModel) -> Sequence[AttentionLayer]:
        return numbered("layer", [block.self_attn for block in model.blocks], patch=model.patch_size[-1])

    def stages(self, model: HostModel) -> list[nn.Module]:
        return [*model.blocks, model.head]
