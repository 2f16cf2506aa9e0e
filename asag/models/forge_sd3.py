"""SD3 and SD3.5 as Forge runs them.

Source: backend/nn/mmditx.py (JointBlock, block_mixing): text tokens come first. In SD3.5 the image's block has a second
attention, attn2, over image tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from asag.blocks import Address
from asag.models.base import AttentionLayer, HostModel, TokenGrid
from asag.models.host_attention import HostTransformer, SequenceLayer


class ForgeSd3(HostTransformer):
    """joint.N is joint_blocks[N]: joint.N.0 its joint attention, joint.N.1 its attn2 where it has one."""

    name = "SD3 and SD3.5 (Forge)"
    kinds: tuple[str, ...] = ("SD3",)
    class_name = "MMDiTX"
    homes = (("backend.nn.mmditx", "attention"),)

    def layers(self, model: HostModel) -> Sequence[AttentionLayer]:
        return [
            SequenceLayer(Address("joint", number, index), block, patch=model.patch_size)
            for number, block in enumerate(model.joint_blocks)
            for index in range(2 if hasattr(block.x_block, "attn2") else 1)
        ]

    def stages(self, model: HostModel) -> list[nn.Module]:
        return [*model.joint_blocks, model.final_layer]

    def image(
        self, layer: SequenceLayer, token_grid: TokenGrid, tokens: int, given: tuple[Any, ...] = ()
    ) -> slice | None:
        images = token_grid.image_tokens(layer.patch)
        texts = 0 if layer.address.layer else token_grid.text_tokens
        return slice(texts, tokens) if tokens == texts + images else None
