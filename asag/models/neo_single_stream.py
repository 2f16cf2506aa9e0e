"""Krea 2 and Ernie-Image as Neo runs them: one stream of text and image tokens.

Sources: backend/nn/krea.py (SingleStreamDiT: text and image, with reference images after the image, or before it since
September 2026) and backend/nn/ernie.py (ErnieImageModel: image, text). Reference images are kept like text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from asag.blocks import Address
from asag.models.base import AttentionLayer, HostModel, TokenGrid, UnsupportedModel
from asag.models.host_attention import HostTransformer, SequenceLayer, numbered


class References:
    """Where a model puts its images of reference: before the image, after it, or None while that isn't known yet."""

    def __init__(self) -> None:
        self.come_first: bool | None = None


@dataclass(frozen=True)
class KreaLayer(SequenceLayer):
    """What is known of the references holds for all its layers, and for all steps of a picture."""

    references: References = field(default_factory=References)


class NeoKrea(HostTransformer):
    """layer.N is blocks[N]."""

    name = "Krea 2 (Neo)"
    kinds: tuple[str, ...] = ("Krea 2",)
    class_name = "SingleStreamDiT"
    homes = (("backend.nn.krea", "attention_function"),)

    def layers(self, model: HostModel) -> Sequence[AttentionLayer]:
        modules, references = [block.attn for block in model.blocks], References()
        return [
            KreaLayer(Address("layer", number, 0), module, patch=model.patch, references=references)
            for number, module in enumerate(modules)
        ]

    def stages(self, model: HostModel) -> list[nn.Module]:
        return [*model.blocks, model.last]

    def image(
        self, layer: SequenceLayer, token_grid: TokenGrid, tokens: int, given: tuple[Any, ...] = ()
    ) -> slice | None:
        # Frames, of which an image is one, are folded into the batch.
        texts, images = token_grid.text_tokens, token_grid.image_tokens(layer.patch) // token_grid.frames
        if tokens < texts + images:
            return None
        start = texts
        if tokens > texts + images and self._references_come_first(layer, given, texts, tokens):
            start = tokens - images
        return slice(start, start + images)

    def _references_come_first(self, layer: SequenceLayer, given: tuple[Any, ...], token: int, tokens: int) -> bool:
        if not isinstance(layer, KreaLayer):
            raise TypeError(f"{layer.address}: a {type(layer).__name__}; allowed: a KreaLayer")
        known = layer.references
        if known.come_first is None:
            # The host waits for the device here, so once and not in every layer of every step.
            known.come_first = not _is_of_the_image(given, token, tokens)
        return known.come_first


def _is_of_the_image(given: tuple[Any, ...], token: int, tokens: int) -> bool:
    """Whether a token is the image's, and not a reference's: its rotary embedding turns by the number of its frame,
    which is 0 for the image and counts from 1 for references. `given` are the arguments of Attention.forward, whose
    second is (batch, 1, tokens, pairs of channels, 2, 2)."""
    rotations = given[1] if len(given) > 1 else None
    if not isinstance(rotations, Tensor) or rotations.ndim != 6 or rotations.shape[2] != tokens:
        raise UnsupportedModel(
            f"its sequence has {tokens} tokens, and ASAG can't tell those of reference images from the image's; "
            "allowed: no reference images"
        )
    return bool(rotations[0, 0, token, 0, 0, 0] > 0.99)


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

    def image(
        self, layer: SequenceLayer, token_grid: TokenGrid, tokens: int, given: tuple[Any, ...] = ()
    ) -> slice | None:
        images = token_grid.image_tokens(layer.patch)
        return slice(0, images) if tokens == images + token_grid.text_tokens else None
