"""Lumina 2 and Z-Image as Neo runs them.

Sources: backend/nn/lumina.py (NextDiT) and, for Nunchaku's weights, backend/nn/svdq.py (NunchakuZImageAttention): text
tokens first, padded to a multiple in Z-Image, then the image's, padded likewise. The refiner layers see text or image
alone and come before the layers; they aren't addressed.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from asag.models.base import AttentionLayer, HostModel
from asag.models.host_attention import HostTransformer, numbered


class NeoLumina(HostTransformer):
    """layer.N is layers[N]."""

    name = "Lumina 2 and Z-Image (Neo)"
    kinds: tuple[str, ...] = ("Lumina 2", "Z-Image")
    class_name = "NextDiT"
    row_methods: tuple[str, ...] = ("unpatchify",)
    homes = (("backend.nn.lumina", "attention_function"), ("backend.nn.svdq", "attention_function"))

    def layers(self, model: HostModel) -> Sequence[AttentionLayer]:
        attentions = [layer.attention for layer in model.layers]
        multiple = model.pad_tokens_multiple or 1
        return numbered("layer", attentions, patch=model.patch_size, text_multiple=multiple)

    def stages(self, model: HostModel) -> list[nn.Module]:
        return [*model.layers, model.final_layer]
