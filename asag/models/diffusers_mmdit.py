"""The MMDiTs of diffusers, SD3 and Flux: text and image tokens attend to each other in one joint sequence.

Sources: diffusers/models/transformers/transformer_sd3.py (SD3Transformer2DModel), models/attention.py
(JointTransformerBlock), models/attention_processor.py (JointAttnProcessor2_0, image tokens first) and
models/transformers/transformer_flux.py (FluxTransformerBlock, FluxSingleTransformerBlock, text tokens first).

The host's own forward runs unchanged, so that norms, rotary embeddings, LoRA and IP-Adapter stay as they are; only
its call of scaled_dot_product_attention is replaced, and only while a chosen layer runs. Nothing is patched for it:
a torch function mode belongs to the thread that enters it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from asag.blocks import Address, BlockList, middle_block
from asag.models.base import AttentionLayer, Forward, HostModel, TokenGrid, UnsupportedModel, has_class, masks_nothing
from asag.operators import Operator

SDPA_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


class Sd3Transformer:
    """joint.N is transformer_blocks[N]. In SD3.5 some blocks have a second attention, over image tokens alone:
    there joint.N.0 is the joint one and joint.N.1 the other."""

    name = "diffusers SD3Transformer2DModel"
    kinds: tuple[str, ...] = ()
    reason = "the middle of the network, like the middle block of a UNet: joint.12 of SD3's 24"
    experimental = True
    row_methods: tuple[str, ...] = ()

    def default_blocks(self, addresses: Sequence[Address]) -> BlockList:
        return middle_block(addresses)

    def matches(self, model: HostModel) -> bool:
        return has_class(model, "SD3Transformer2DModel")

    def layers(self, model: HostModel) -> list[AttentionLayer]:
        return [
            AttentionLayer(Address("joint", number, index), attention)
            for number, block in enumerate(model.transformer_blocks)
            for index, attention in enumerate((block.attn, getattr(block, "attn2", None)))
            if attention is not None
        ]

    def stages(self, model: HostModel) -> list[nn.Module]:
        return [*model.transformer_blocks, model.norm_out, model.proj_out]

    def replacement(
        self, layer: AttentionLayer, original: Forward, operator: Operator, token_grid: TokenGrid
    ) -> Forward:
        return AttendingForward(layer, original, operator, token_grid, text_first=False)


class FluxTransformer:
    """double.N is transformer_blocks[N], single.N is single_transformer_blocks[N].

    The attention of a single block gets text and image already joined. How long the text is, only the block knows:
    so there the block is the module whose forward is replaced.
    """

    name = "diffusers FluxTransformer2DModel"
    kinds: tuple[str, ...] = ()
    reason = "the middle of the network, with both kinds of block counted: single.9 of Flux's 19 + 38"
    experimental = True
    row_methods: tuple[str, ...] = ()

    def default_blocks(self, addresses: Sequence[Address]) -> BlockList:
        return middle_block(addresses)

    def matches(self, model: HostModel) -> bool:
        return has_class(model, "FluxTransformer2DModel")

    def layers(self, model: HostModel) -> list[AttentionLayer]:
        doubles = [
            AttentionLayer(Address("double", number, 0), block.attn)
            for number, block in enumerate(model.transformer_blocks)
        ]
        singles = [
            AttentionLayer(Address("single", number, 0), block)
            for number, block in enumerate(model.single_transformer_blocks)
        ]
        return doubles + singles

    def stages(self, model: HostModel) -> list[nn.Module]:
        return [*model.transformer_blocks, *model.single_transformer_blocks, model.norm_out, model.proj_out]

    def replacement(
        self, layer: AttentionLayer, original: Forward, operator: Operator, token_grid: TokenGrid
    ) -> Forward:
        return AttendingForward(layer, original, operator, token_grid, text_first=True)


class AttendingForward:
    """A forward that is `original` with its attention replaced.

    Like attention and block alike it takes image tokens (batch, image tokens, channels) and, where the sequence is
    joint, text tokens (batch, text tokens, channels). Raises UnsupportedModel if the attention never came by.
    """

    def __init__(
        self, layer: AttentionLayer, original: Forward, operator: Operator, token_grid: TokenGrid, text_first: bool
    ) -> None:
        self.layer, self.operator, self.token_grid, self.text_first = layer, operator, token_grid, text_first
        # Of nested replacements the innermost holds, so it runs the host's forward and not the outer replacement.
        self.host_forward: Forward = original.host_forward if isinstance(original, AttendingForward) else original

    def __call__(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *others: Any, **named: Any
    ) -> Any:
        images = hidden_states.shape[1]
        texts = 0 if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        image = slice(texts, texts + images) if self.text_first else slice(0, images)
        grid = self.token_grid.grid(images)

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            if not texts:
                return self.operator.plain(query, key, value, grid)
            return self.operator.joint(query, key, value, image, grid)

        address, tokens = self.layer.address, images + texts
        with ReplacedAttention(address, tokens, attend) as attention:
            result = self.host_forward(hidden_states, encoder_hidden_states, *others, **named)
        if not attention.replaced:
            raise UnsupportedModel(
                f"{address}: ASAG doesn't know the attention that {type(self.layer.module).__name__} computes here, so "
                f"it wasn't weakened; allowed: torch's scaled_dot_product_attention on its {tokens} tokens, as the "
                "attention backend native calls it"
            )
        return result


class ReplacedAttention(TorchFunctionMode):
    """While entered, `attend(query, key, value)` stands for every scaled_dot_product_attention call whose queries
    and keys are `tokens` in number; tensors are (batch, heads, tokens, head_dim).

    Other calls pass: an IP-Adapter's keys differ in number. Raises UnsupportedModel for a call that `attend` can't
    stand for: masked, causal or with a scale of its own.
    """

    def __init__(self, address: Address, tokens: int, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.address, self.tokens, self.attend = address, tokens, attend
        self.replaced = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        given = dict(zip(SDPA_ARGUMENTS, args, strict=False)) | kwargs
        query, key, value = given["query"], given["key"], given["value"]
        if query.shape[2] != self.tokens or key.shape[2] != self.tokens:
            return func(*args, **kwargs)
        if not masks_nothing(given.get("attn_mask")):
            raise UnsupportedModel(f"{self.address}: its attention is masked; allowed: attention without a mask")
        if given.get("is_causal") or given.get("scale") is not None:
            raise UnsupportedModel(f"{self.address}: its attention is causal or scaled; allowed: neither")
        self.replaced += 1
        return self.attend(query, key, value)
