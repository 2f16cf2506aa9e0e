"""Krea 2 and Ernie-Image as Neo runs them: one stream of text and image tokens.

Sources: backend/nn/krea.py (SingleStreamDiT: text, image, reference images) and backend/nn/ernie.py (ErnieImageModel:
image, text). Reference images are kept like text.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from asag.models.base import AttentionLayer, HostModel, TokenGrid
from asag.models.host_attention import HostTransformer, SequenceLayer, numbered


class NeoKrea(HostTransformer):
    """layer.N is blocks[N]."""

    name = "Krea 2 (Neo)"
    kinds: tuple[str, ...] = ("Krea 2",)
    class_name = "SingleStreamDiT"
    homes = (("backend.nn.krea", "attention_function"),)

    def layers(self, model: HostModel) -> Sequence[AttentionLayer]:
        return numbered("layer", [block.attn for block in model.blocks], patch=model.patch)

    def stages(self, model: HostModel) -> list[nn.Module]:
        return [*model.blocks, model.last]

    def image(self, layer: SequenceLayer, token_grid: TokenGrid, tokens: int) -> slice | None:
        # Frames, of which an image is one, are folded into the batch.
        texts, images = token_grid.text_tokens, token_grid.image_tokens(layer.patch) // token_grid.frames
        return slice(texts, texts + images) if tokens >= texts + images else None


class NeoErnie(HostTransformer):
    """layer.N is layers[N]."""

    name = "Ernie-Image (Neo)"
    kinds: tuple[str, ...] = ("Ernie-Image",)
    class_name = "ErnieImageModel"
    homes = (("backend.nn.ernie", "attention_function"),)

    def layers(self, model: HostModel) -> Sequence[AttentionLayer]:
        return numbered("layer", [layer.self_attention for layer in model.layers], patch=model.patch_size)

    def stages(self, model: HostModel) -> list[nn.Module]:
        return [*model.layers, model.final_norm, model.final_linear]

    def image(self, layer: SequenceLayer, token_grid: TokenGrid, tokens: int) -> slice | None:
        images = token_grid.image_tokens(layer.patch)
        return slice(0, images) if tokens == images + token_grid.text_tokens else None
