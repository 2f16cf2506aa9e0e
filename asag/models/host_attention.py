"""The attention function of Forge and its relatives, replaced for a while; and the transformers that need it.

Transformers there have no hook for their attention: the host's function is replaced while a chosen layer runs, and at
no other time. Source: backend/attention.py (attention_function: query, key, value, heads, mask, attn_precision,
skip_reshape, skip_output_reshape; in Neo since September 2026 also scale, enable_gqa and, in transformer_options, an
attention that stands for it). Query and key arrive there after their norms and rotary embeddings, whichever kernel
(PyTorch, xformers, flash, sage, split) stands behind the name.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from asag.blocks import Address, BlockList, middle_block
from asag.models.base import (
    AttentionLayer,
    Forward,
    HostModel,
    TokenGrid,
    UnsupportedModel,
    has_class,
    join_heads,
    split_heads,
)
from asag.operators import Operator

# In transformer_options: an attention that an extension puts in place of the host's function, and is given it
# (backend/attention.py: wrap_attn).
OVERRIDE = "optimized_attention_override"


@dataclass(frozen=True)
class SequenceLayer(AttentionLayer):
    """A layer that attends over a sequence: how many latent pixels a token spans, and to what number of tokens text
    is padded (1: not at all)."""

    patch: int = 2
    text_multiple: int = 1


class HostTransformer:
    """Base of the families. A subclass says where its layers are, and `image` where its sequence isn't the usual one.

    `homes` are the (module, name) pairs under which the layers' code finds the host's attention function; `hint` ends
    the message about a layer that calls another one.
    """

    name = ""
    class_name = ""
    kinds: tuple[str, ...] = ()
    experimental = True
    row_methods: tuple[str, ...] = ()
    reason = "the middle of the network, like the middle block of a UNet"
    homes: tuple[tuple[str, str], ...] = ()
    hint = ""

    def matches(self, model: HostModel) -> bool:
        return has_class(model, self.class_name)

    def default_blocks(self, addresses: Sequence[Address]) -> BlockList:
        return middle_block(addresses)

    def layers(self, model: HostModel) -> Sequence[AttentionLayer]:
        raise NotImplementedError

    def stages(self, model: HostModel) -> list[nn.Module]:
        raise NotImplementedError

    def image(
        self, layer: SequenceLayer, token_grid: TokenGrid, tokens: int, given: tuple[Any, ...] = ()
    ) -> slice | None:
        """Where the image tokens lie in a sequence of `tokens`, that a layer called with the arguments `given` attends
        over; None when this isn't the layer's attention.

        Here: text first, padded as the layer says, then the image, and what may follow is kept like text.
        """
        texts = -(-token_grid.text_tokens // layer.text_multiple) * layer.text_multiple
        images = token_grid.image_tokens(layer.patch)
        return slice(texts, texts + images) if tokens >= texts + images else None

    def attend(
        self,
        layer: SequenceLayer,
        operator: Operator,
        token_grid: TokenGrid,
        given: tuple[Any, ...],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
    ) -> Tensor | None:
        """What a layer, called with the arguments `given`, gets for one call of the host's attention function: see
        StandIn. Raises ValueError for a mask that the operator can't keep to."""
        tokens = query.shape[2]
        image = self.image(layer, token_grid, tokens, given) if key.shape[2] == tokens else None
        if image is None:
            return None
        # A blur over a grid means the grid of one image.
        grid = token_grid.grid(image.stop - image.start) if token_grid.frames == 1 else None
        return operator.joint(query, key, value, image, grid, mask)

    def replacement(
        self, layer: AttentionLayer, original: Forward, operator: Operator, token_grid: TokenGrid
    ) -> Forward:
        if not isinstance(layer, SequenceLayer):
            raise TypeError(f"{layer.address}: a {type(layer).__name__}; allowed: a SequenceLayer")

        def forward(*args: Any, **kwargs: Any) -> Any:
            def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor | None:
                try:
                    return self.attend(layer, operator, token_grid, args, query, key, value, mask)
                except ValueError as error:
                    raise UnsupportedModel(f"{layer.address}: {error}") from error

            attention = StandIn(attend)
            with attention.at(self.homes):
                result = original(*args, **kwargs)
            if not attention.calls:
                raise UnsupportedModel(self.unknown_attention(layer))
            return result

        return forward

    def unknown_attention(self, layer: AttentionLayer) -> str:
        """What is said of a layer that didn't call any function that this family knows on its image tokens."""
        kind = type(layer.module)
        known = ", ".join(f"{module}.{name}" for module, name in self.homes if hasattr(sys.modules.get(module), name))
        return (
            f"{layer.address}: ASAG doesn't know the attention that {kind.__module__}.{kind.__qualname__} computes "
            f"here, so it wasn't weakened; allowed: {known or 'none that is loaded'}, over the image's tokens"
            f"{self.hint}"
        )


class StandIn:
    """Stands in for the host's attention function: `attend` gives the attention of query, key and value, (batch, heads,
    tokens, head_dim), under a mask of four dimensions or None; or None, and then the host's own function is called."""

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor | None]) -> None:
        self.attend = attend
        self.calls = 0

    @contextmanager
    def at(self, homes: Sequence[tuple[str, str]]) -> Iterator[None]:
        """While open, the function is replaced under these (module, name) pairs, where the module is loaded."""
        with ExitStack() as stack:
            for module, name in homes:
                if hasattr(sys.modules.get(module), name):
                    stack.enter_context(self._replacing(sys.modules[module], name))
            yield

    @contextmanager
    def _replacing(self, home: Any, name: str) -> Iterator[None]:
        host = getattr(home, name)
        setattr(home, name, self._around(host))
        try:
            yield
        finally:
            setattr(home, name, host)

    def _around(self, host: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def attention(
            query: Tensor,
            key: Tensor,
            value: Tensor,
            heads: int,
            mask: Tensor | None = None,
            *others: Any,
            **named: Any,
        ) -> Tensor:
            options = named.get("transformer_options") or {}
            if OVERRIDE not in options:
                out = self._weakened(query, key, value, heads, mask, named)
                return host(query, key, value, heads, mask, *others, **named) if out is None else out
            # Another extension's attention stays, with the host's weakened inside it. One that doesn't call the host's
            # gives place.
            without = {name: value for name, value in options.items() if name != OVERRIDE}
            inside = StandIn(self.attend)
            around = inside._around(host)

            def weakened(*args: Any, **kwargs: Any) -> Tensor:
                return around(*args, **{**kwargs, "transformer_options": without})

            found: Tensor = options[OVERRIDE](weakened, query, key, value, heads, mask, *others, **named)
            self.calls += inside.calls
            out = None if inside.calls else self._weakened(query, key, value, heads, mask, named)
            return found if out is None else out

        return attention

    def _weakened(
        self, query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None, named: dict[str, Any]
    ) -> Tensor | None:
        """What `attend` gives for one call of the host's function, in the layout that the call asks for."""
        parts: Sequence[Tensor] = (query, key, value)
        fewer = named.get("enable_gqa")  # keys and values may have fewer heads than queries
        if not named.get("skip_reshape"):
            # SD3's values come with their heads apart already.
            parts = [tensor.flatten(2) for tensor in parts]
            width = parts[0].shape[2] // heads
            parts = [split_heads(each, each.shape[2] // width if fewer else heads) for each in parts]
        if fewer:
            parts = [each.repeat_interleave(heads // each.shape[1], dim=1) for each in parts]
        scale = named.get("scale")
        if scale is not None:
            parts = [parts[0] * (scale * math.sqrt(parts[0].shape[3])), *parts[1:]]
        out = self.attend(parts[0], parts[1], parts[2], _four_dimensions(mask))
        if out is None:
            return None
        self.calls += 1
        return out if named.get("skip_output_reshape") else join_heads(out)


def _four_dimensions(mask: Tensor | None) -> Tensor | None:
    """A mask as the host's attention_pytorch takes it: (query, key), (batch, query, key) or with heads."""
    if mask is None or mask.ndim == 4:
        return mask
    return mask[None, None] if mask.ndim == 2 else mask.unsqueeze(1)


def numbered(part: str, blocks: Sequence[nn.Module], **details: Any) -> list[SequenceLayer]:
    """One layer for each of `blocks`, addressed by `part` and its place."""
    return [SequenceLayer(Address(part, number, 0), block, **details) for number, block in enumerate(blocks)]
