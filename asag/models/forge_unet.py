"""The UNets of SD1.x, SD2 and SDXL as Forge, reForge and Forge Neo run them.

Sources: backend/nn/unet.py (Forge, Neo) and ldm_patched/ldm/modules/attention.py (reForge), BasicTransformerBlock:
transformer_options["patches_replace"]["attn1"] maps (part, block, transformer block) to a function of query, key and
value, each (batch, tokens, heads * head_dim), after the layer's projections and before its to_out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from asag.blocks import Address
from asag.models.base import (
    AttentionLayer,
    Forward,
    HostModel,
    TokenGrid,
    UnsupportedModel,
    join_heads,
    masks_nothing,
    split_heads,
)
from asag.models.host_attention import StandIn
from asag.models.ldm_unet import LdmUnet, transformer_blocks
from asag.operators import Operator

# Where functions that stand for attn1 (extensions-builtin/forge_preprocessor_reference, sd_forge_stylealign) find the
# host's attention: Forge and Neo, reForge.
HOMES = (("backend.attention", "attention_function"), ("ldm_patched.ldm.modules.attention", "optimized_attention"))


class ForgeUnet(LdmUnet):
    """Addresses are those of LdmUnet. The module of a layer is its transformer block: the host's own way to replace
    self-attention starts there, and whatever patches the inputs of attention stays in force."""

    name = "SD1.x, SD2 and SDXL UNets (Forge)"

    def layers(self, model: HostModel) -> list[AttentionLayer]:
        return [
            AttentionLayer(Address(part, index, number), block)
            for part, index, number, block in transformer_blocks(model)
            if not getattr(block, "disable_self_attn", False)
        ]

    def replacement(
        self, layer: AttentionLayer, original: Forward, operator: Operator, token_grid: TokenGrid
    ) -> Forward:
        def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
            if not masks_nothing(mask):
                raise UnsupportedModel(f"{layer.address}: its attention is masked; allowed: attention without a mask")
            return operator.plain(query, key, value, token_grid.grid(query.shape[2]))

        def forward(x: Tensor, context: Tensor | None = None, transformer_options: dict[str, Any] | None = None) -> Any:
            options = dict(transformer_options or {})
            replaced = dict(options.get("patches_replace", {}))
            at_attn1 = replaced.get("attn1", {})
            place = (*options["block"], options.get("block_index", 0))
            others: Callable[..., Tensor] | None = at_attn1.get(place, at_attn1.get(options["block"]))

            def replacement(query: Tensor, key: Tensor, value: Tensor, extra_options: dict[str, Any]) -> Tensor:
                if others is not None:
                    # Another extension's stays, with the host's attention weakened inside it: a reference's keys, a
                    # style shared in the batch. One that calls attention by another way gives place.
                    inside = StandIn(attend)
                    with inside.at(HOMES):
                        out = others(query, key, value, extra_options)
                    if inside.calls:
                        return out
                heads = extra_options["n_heads"]
                out = attend(split_heads(query, heads), split_heads(key, heads), split_heads(value, heads))
                return join_heads(out)

            replaced["attn1"] = {**at_attn1, place: replacement}
            options["patches_replace"] = replaced
            return original(x, context=context, transformer_options=options)

        return forward
