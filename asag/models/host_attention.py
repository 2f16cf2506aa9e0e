"""Transformers of Forge and Neo that have no hook for their attention: the host's attention function is replaced while
a chosen layer runs, and at no other time.

Sources: backend/attention.py (attention_function: query, key, value, heads, mask, attn_precision, skip_reshape,
skip_output_reshape). Query and key arrive there after their norms and rotary embeddings, whichever kernel (PyTorch,
xformers, flash, sage, split) stands behind the name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from asag.blocks import Address, BlockList, parse_blocks
from asag.models.base import AttentionLayer, Forward, Scene, UnsupportedModel, has_class, join_heads, split_heads
from asag.operators import Operator


@dataclass(frozen=True)
class SequenceLayer(AttentionLayer):
    """A layer that attends over a sequence: how many latent pixels a token spans, and to what number of tokens text
    is padded (1: not at all)."""

    patch: int = 2
    text_multiple: int = 1


class HostTransformer:
    """Base of the families. A subclass says where its layers are, and `image`: where its image tokens lie.

    `homes` are the (module, name) pairs under which the layers' code finds the host's attention function.
    """

    name = ""
    class_name = ""
    experimental = True
    reason = "the middle of the depth, where the middle block of a UNet is"
    homes: tuple[tuple[str, str], ...] = ()

    def matches(self, model: nn.Module) -> bool:
        return has_class(model, self.class_name)

    def default_blocks(self, model: nn.Module) -> BlockList:
        layers = self.layers(model)
        middle = layers[len(layers) // 2].address
        return parse_blocks(f"{middle.part}.{middle.block}")

    def layers(self, model: nn.Module) -> list[AttentionLayer]:
        raise NotImplementedError

    def image(self, layer: SequenceLayer, scene: Scene, tokens: int) -> slice | None:
        """Where the image tokens lie in a sequence of `tokens`; None when this isn't the layer's attention."""
        raise NotImplementedError

    def replacement(self, layer: AttentionLayer, original: Forward, operator: Operator, scene: Scene) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            attention = _Attention(self, layer, operator, scene)
            with attention.standing_in(self.homes):
                result = original(*args, **kwargs)
            if not attention.replaced:
                raise UnsupportedModel(
                    f"{layer.address}: ran without calling the host's attention on its image tokens, so it wasn't "
                    "perturbed; an extension or a compiled block does that"
                )
            return result

        return forward


class _Attention:
    """Stands in for the host's attention function during one run of one layer."""

    def __init__(self, family: HostTransformer, layer: SequenceLayer, operator: Operator, scene: Scene) -> None:
        self.family, self.layer, self.operator, self.scene = family, layer, operator, scene
        self.replaced = 0

    @contextmanager
    def standing_in(self, homes: Sequence[tuple[str, str]]) -> Iterator[None]:
        with ExitStack() as stack:
            for module, name in homes:
                if module in sys.modules:
                    stack.enter_context(_attribute_replaced(sys.modules[module], name, self._around))
            yield

    def _around(self, host: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def attention(
            query: Tensor,
            key: Tensor,
            value: Tensor,
            heads: int,
            mask: Tensor | None = None,
            *others: Any,
            skip_reshape: bool = False,
            skip_output_reshape: bool = False,
            **named: Any,
        ) -> Tensor:
            tokens = query.shape[2 if skip_reshape else 1]
            same = key.shape[2 if skip_reshape else 1] == tokens
            image = self.family.image(self.layer, self.scene, tokens) if same else None
            if image is None:
                named |= {"skip_reshape": skip_reshape} if skip_reshape else {}
                named |= {"skip_output_reshape": skip_output_reshape} if skip_output_reshape else {}
                return host(query, key, value, heads, mask, *others, **named)
            if not skip_reshape:
                query, key, value = (split_heads(tensor, heads) for tensor in (query, key, value))
            self.replaced += 1
            out = self._attend(query, key, value, mask, image)
            return out if skip_output_reshape else join_heads(out)

        return attention

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, image: slice) -> Tensor:
        frames = self.scene.frames
        grid = self.scene.grid(image.stop - image.start) if frames == 1 else None
        if mask is not None:
            # As the host's attention_pytorch takes it: (query, key), (batch, query, key) or with heads.
            mask = mask.reshape(*[1] * (3 - mask.ndim), *mask.shape)
            mask = mask.unsqueeze(1) if mask.ndim == 3 else mask
        try:
            return self.operator.joint(query, key, value, image, grid, mask)
        except ValueError as error:
            raise UnsupportedModel(f"{self.layer.address}: {error}") from error


@contextmanager
def _attribute_replaced(home: Any, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Any:
    """Replace `home.name` by what `around` makes of it, and put it back."""
    before = getattr(home, name)
    setattr(home, name, around(before))
    try:
        yield
    finally:
        setattr(home, name, before)


def numbered(part: str, blocks: Sequence[nn.Module], **details: Any) -> list[SequenceLayer]:
    """One layer for each of `blocks`, addressed by `part` and its place."""
    return [SequenceLayer(Address(part, number, 0), block, **details) for number, block in enumerate(blocks)]
