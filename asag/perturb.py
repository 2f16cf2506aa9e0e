"""The perturbed pass: operators placed in chosen self-attention layers of a model, and always taken out again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from asag.blocks import Address, parse_blocks, select
from asag.models.base import AttentionLayer, Family, Forward, Scene
from asag.operators import Operator


def choose_layers(model: nn.Module, family: Family, blocks: str) -> list[AttentionLayer]:
    """The layers of `model` that a block list selects; raises blocks.BlocksError as `blocks.select` does."""
    inventory: list[tuple[Address, AttentionLayer]] = [(layer.address, layer) for layer in family.layers(model)]
    return select(parse_blocks(blocks), inventory, family.default_blocks(model))


@contextmanager
def perturbed(
    layers: Sequence[AttentionLayer], family: Family, operator: Operator, scene: Scene | None = None
) -> Iterator[None]:
    """While open, each layer attends as `operator` says. Afterwards, whatever happened, the modules are as before.

    Nested use is allowed: the inner operator holds until the inner context closes.
    """
    with ExitStack() as stack:
        for layer in layers:
            replacement = family.replacement(layer, layer.module.forward, operator, scene or Scene())
            stack.enter_context(forward_replaced(layer.module, replacement))
        yield


@contextmanager
def forward_replaced(module: nn.Module, forward: Forward) -> Iterator[None]:
    """Set `module.forward` on the instance, and restore its __dict__ exactly: an instance attribute that was there
    (another extension's) comes back, one that wasn't goes away."""
    absent = object()
    before: Any = module.__dict__.get("forward", absent)
    try:
        module.__dict__["forward"] = forward
        yield
    finally:
        if before is absent:
            module.__dict__.pop("forward", None)
        else:
            module.__dict__["forward"] = before


def slice_rows(given: Any, rows: slice, total: int) -> Any:
    """The same nested structure of lists, tuples and dicts with every tensor of `total` rows cut to `rows`.

    Other tensors (scalars, timesteps without a batch dimension) and values pass through.
    """
    if isinstance(given, dict):
        return {name: slice_rows(value, rows, total) for name, value in given.items()}
    if isinstance(given, (list, tuple)):
        return type(given)(slice_rows(value, rows, total) for value in given)
    if hasattr(given, "shape") and len(given.shape) > 0 and given.shape[0] == total:
        return given[rows]
    return given
