"""The ldm and sgm UNet (SD1.x, SD2, SDXL) as AUTOMATIC1111 runs it.

Sources: ldm/modules/diffusionmodules/openaimodel.py (UNetModel: input_blocks, middle_block, output_blocks),
ldm/modules/attention.py and sgm/modules/attention.py (BasicTransformerBlock.attn1, CrossAttention).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from asag.blocks import Address, BlockList, parse_blocks
from asag.models.base import AttentionLayer, Forward, HostModel, TokenGrid, join_heads, split_heads
from asag.models.tensor_names import UNETS
from asag.operators import Operator


class LdmUnet:
    """Addresses are the UNet's own block numbers: in.1 is input_blocks.1, out.3 output_blocks.3.

    `key_value_inputs` gives the inputs of to_k and to_v for a layer's context, for hosts in which something stands
    between the two (AUTOMATIC1111's hypernetworks); by default both are the context itself.
    """

    name = "SD1.x, SD2 and SDXL UNets"
    kinds: tuple[str, ...] = UNETS
    reason = "the middle block, as in the papers on PAG and SEG"
    experimental = False
    row_methods: tuple[str, ...] = ()

    def __init__(self, key_value_inputs: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None) -> None:
        self.key_value_inputs = key_value_inputs or (lambda context: (context, context))

    def default_blocks(self, addresses: Sequence[Address]) -> BlockList:
        return parse_blocks("mid")

    def matches(self, model: HostModel) -> bool:
        return all(hasattr(model, part) for part in ("input_blocks", "middle_block", "output_blocks"))

    def layers(self, model: HostModel) -> list[AttentionLayer]:
        return [
            AttentionLayer(Address(part, index, number), block.attn1)
            for part, index, number, block in transformer_blocks(model)
        ]

    def stages(self, model: HostModel) -> list[nn.Module]:
        blocks = [*model.input_blocks, model.middle_block, *model.output_blocks]
        return [*(stage for block in blocks for stage in block), model.out]

    def replacement(
        self, layer: AttentionLayer, original: Forward, operator: Operator, token_grid: TokenGrid
    ) -> Forward:
        module: HostModel = layer.module

        def forward(x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, **others: Any) -> Tensor:
            if mask is not None or others.get("n_times_crossframe_attn_in_self"):
                raise ValueError(f"{layer.address}: masked or cross-frame self-attention can't be perturbed")
            extra = others.get("additional_tokens")
            if extra is not None:
                raise ValueError(f"{layer.address}: self-attention with additional tokens can't be perturbed")
            key_input, value_input = self.key_value_inputs(x if context is None else context)
            query, key, value = (
                split_heads(projection(given), module.heads)
                for projection, given in ((module.to_q, x), (module.to_k, key_input), (module.to_v, value_input))
            )
            out = operator.plain(query, key, value, token_grid.grid(query.shape[2]))
            projected: Tensor = module.to_out(join_heads(out))
            return projected

        return forward


def transformer_blocks(model: HostModel) -> Iterator[tuple[str, int, int, HostModel]]:
    """Every BasicTransformerBlock in the order in which the UNet runs them: its part of the UNet, the block's number
    there, its own number in that block, and the module."""
    parts = [("in", index, block) for index, block in enumerate(model.input_blocks)]
    parts.append(("mid", 0, model.middle_block))
    parts += [("out", index, block) for index, block in enumerate(model.output_blocks)]
    for part, index, block in parts:
        found = (child for child in block.modules() if isinstance(getattr(child, "attn1", None), nn.Module))
        for number, transformer in enumerate(found):
            yield part, index, number, transformer
