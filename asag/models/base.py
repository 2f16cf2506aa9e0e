"""What perturb.py needs to know of a model family: where its self-attention is and how to run another one there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from asag.blocks import Address, BlockList
from asag.chosen_heads import LayerHeads
from asag.operators import Operator

Forward = Callable[..., Any]
# A host's model or a part of it. What attributes it has, its source says; torch's nn.Module doesn't.
HostModel: TypeAlias = Any


class UnsupportedModel(ValueError):
    """The model's family isn't known, or this instance of it can't be perturbed; the message says why."""


@dataclass(frozen=True)
class AttentionLayer:
    """One self-attention layer of a model: its address and the module whose forward is replaced; and which of its heads
    attend by the operator (None: all)."""

    address: Address
    module: nn.Module
    heads: LayerHeads | None = field(default=None, kw_only=True)


class Family(Protocol):
    """A model family. Stateless: everything of a run lives in what `replacement` returns.

    `reason` says in one line why its default blocks are what they are; `experimental` that guidance in it has been
    checked with random weights alone, so nobody here has seen what it does for a picture. `row_methods` names methods
    of the model that get lists with an entry for each row. `kinds` are the kinds of model that it covers, as
    tensor_names.py calls them, in the hosts that load checkpoints by their tensors' names.
    """

    name: str
    kinds: tuple[str, ...]
    reason: str
    experimental: bool
    row_methods: tuple[str, ...]

    def default_blocks(self, addresses: Sequence[Address]) -> BlockList:
        """What "auto" means for a model with these layers, in the model's order."""

    def matches(self, model: nn.Module) -> bool:
        """Whether `model` is of this family; raises UnsupportedModel for one of it that can't be guided as it runs."""

    def layers(self, model: nn.Module) -> Sequence[AttentionLayer]:
        """The self-attention layers in the order in which the model runs them."""

    def stages(self, model: nn.Module) -> Sequence[nn.Module]:
        """The modules that `model` runs one after another, with nothing but row-wise operations between them, from the
        first layer's at the latest to the end. Empty when what it does with its rows elsewhere forbids to add rows."""

    def replacement(
        self, layer: AttentionLayer, original: Forward, operator: Operator, token_grid: TokenGrid
    ) -> Forward:
        """A forward for the layer's module that attends as `operator` says and does all else as `original`."""


@dataclass
class TokenGrid:
    """What a layer needs to know of the model call it runs in: the (height, width) of the latent image, how many
    frames there are (1: an image) and how many text tokens the model was given."""

    latent_size: tuple[int, int] | None = None
    frames: int = 1
    text_tokens: int = 0

    def enter(self, x: Tensor, context: Tensor | None) -> None:
        """A call of the model begins, on latents x (batch, channels, [frames,] height, width) and text
        (batch, [1,] tokens, features), or (batch, tokens, layers, features) from several layers of an encoder."""
        self.latent_size = (x.shape[-2], x.shape[-1])
        self.frames = x.shape[2] if x.ndim == 5 else 1
        self.text_tokens = 0 if context is None else _tokens(context)

    def image_tokens(self, patch: int) -> int:
        """How many tokens the latents make in patches of `patch` squared, padded to whole patches, over all frames."""
        if self.latent_size is None:
            raise ValueError("latent_size: None; allowed: the size of the latents that the model was given")
        height, width = self.latent_size
        return self.frames * -(-height // patch) * -(-width // patch)

    def grid(self, tokens: int) -> tuple[int, int] | None:
        """(height, width) of `tokens` image tokens, from the latent size halved (rounding up) until it fits."""
        if self.latent_size is None:
            return None
        height, width = self.latent_size
        while height * width > tokens and (height > 1 or width > 1):
            height, width = -(-height // 2), -(-width // 2)
        return (height, width) if height * width == tokens else None


def _tokens(context: Tensor) -> int:
    has_layers = context.ndim == 4 and context.shape[1] != 1
    return context.shape[1] if has_layers else context.shape[-2]


# What hosts' classes of attention call the number of their heads.
HEAD_COUNTS = ("heads", "n_heads", "num_heads", "n_local_heads")


def head_count(module: nn.Module) -> int | None:
    """How many heads a layer has, as its module or the first one in it says; None when none does."""
    for part in module.modules():
        for name in HEAD_COUNTS:
            count = getattr(part, name, None)
            if isinstance(count, int):
                return count
    return None


def split_heads(tensor: Tensor, heads: int) -> Tensor:
    """(batch, tokens, heads * head_dim) -> (batch, heads, tokens, head_dim), a view."""
    split: Tensor = tensor.unflatten(-1, (heads, -1))
    return split.transpose(1, 2)


def join_heads(tensor: Tensor) -> Tensor:
    """(batch, heads, tokens, head_dim) -> (batch, tokens, heads * head_dim)."""
    return tensor.transpose(1, 2).flatten(2)


def has_class(model: object, name: str) -> bool:
    """Whether a class called `name` is among the model's classes: matching without importing the host's package."""
    return any(base.__name__ == name for base in type(model).__mro__)


def masks_nothing(mask: Tensor | None) -> bool:
    """Whether an attention mask changes nothing: none, a boolean one of True alone, or an additive one of 0 alone."""
    if mask is None:
        return True
    return bool(mask.all()) if mask.dtype == torch.bool else not bool(mask.any())


def family_of(model: nn.Module, families: Sequence[Family]) -> Family:
    """The family that `model` belongs to; raises UnsupportedModel naming the class and the families known."""
    for family in families:
        if family.matches(model):
            return family
    known = ", ".join(family.name for family in families)
    raise UnsupportedModel(f"model: {type(model).__module__}.{type(model).__name__}; allowed: {known}")
