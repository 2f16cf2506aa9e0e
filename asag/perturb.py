"""The perturbed pass: operators placed in chosen self-attention layers of a model, and always taken out again.

It is a pass of its own (`perturbed`) or branches off inside the host's (`branching`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from asag.blocks import Address, parse_blocks, select, select_heads
from asag.branch import RowBranch, Tell
from asag.chosen_heads import ChosenHeads, OnHeads
from asag.models.base import AttentionLayer, Family, Forward, TokenGrid, head_count
from asag.operators import Operator
from asag.random_state import RandomState


def choose_layers(
    model: nn.Module, family: Family, blocks: str, heads: ChosenHeads | None = None
) -> list[AttentionLayer]:
    """The layers of `model` that a block list selects, with the heads that it names; `heads` keeps those of a run.

    Raises blocks.BlocksError as `blocks.select` does, and for heads that a layer lacks.
    """
    inventory: list[tuple[Address, AttentionLayer]] = [(layer.address, layer) for layer in family.layers(model)]
    addresses = [address for address, _ in inventory]
    wanted, default = parse_blocks(blocks), family.default_blocks(addresses)
    named, kept = select_heads(wanted, addresses, default), heads or ChosenHeads()
    chosen = []
    for layer in select(wanted, inventory, default):
        if layer.address in named:
            count = head_count(layer.module)
            if count is not None:
                named[layer.address].check(layer.address, count)
            layer = replace(layer, heads=kept.of(layer.module, layer.address, named[layer.address]))
        chosen.append(layer)
    return chosen


def _operator_at(layer: AttentionLayer, operator: Operator) -> Operator:
    """The operator for one layer, on the heads that are chosen there."""
    placed = operator.at(layer.address)
    return placed if layer.heads is None else OnHeads(placed, layer.heads)


@contextmanager
def perturbed(
    layers: Sequence[AttentionLayer], family: Family, operator: Operator, token_grid: TokenGrid | None = None
) -> Iterator[None]:
    """While open, each layer attends as `operator` says. Afterwards, whatever happened, the modules are as before.

    Nested use is allowed: the inner operator holds until the inner context closes.
    """
    with ExitStack() as stack:
        for layer in layers:
            replacement = family.replacement(
                layer, layer.module.forward, _operator_at(layer, operator), token_grid or TokenGrid()
            )
            stack.enter_context(forward_replaced(layer.module, replacement))
        yield


@contextmanager
def branching(
    model: nn.Module,
    layers: Sequence[AttentionLayer],
    family: Family,
    operator: Operator,
    token_grid: TokenGrid,
    rows: slice,
    total: int,
    tell: Tell = lambda rows: None,
) -> Iterator[RowBranch]:
    """While open, a forward pass of `model` on `total` rows also predicts `rows` of them perturbed: see RowBranch.

    Raises RuntimeError when the family has no stages, or they hold none of the layers.
    """
    stages = family.stages(model)
    if not stages:
        raise RuntimeError(f"{type(model).__name__} takes no more rows on the way")
    branch = RowBranch(stages, _first_stage(stages, layers), rows, total, tell)
    with branch.open(), ExitStack() as stack:
        for name in family.row_methods:
            stack.enter_context(attribute_replaced(model, name, branch.growing(getattr(model, name))))
        for module in dict.fromkeys(layer.module for layer in layers):
            forward = replacement = module.forward
            # SD3.5's blocks hold two layers in one module: its rows are split once, around both.
            for layer in layers:
                if layer.module is module:
                    replacement = family.replacement(layer, replacement, _operator_at(layer, operator), token_grid)
            stack.enter_context(forward_replaced(module, _by_rows(forward, replacement, branch)))
        yield branch


def _first_stage(stages: Sequence[nn.Module], layers: Sequence[AttentionLayer]) -> int:
    wanted = {layer.module for layer in layers}
    for index, stage in enumerate(stages):
        if not wanted.isdisjoint(stage.modules()):
            return index
    raise RuntimeError(f"none of the {len(stages)} stages holds a layer to perturb")


def _by_rows(forward: Forward, replacement: Forward, branch: RowBranch) -> Forward:
    """A layer's forward once the rows have grown: the host's own on its own rows, the replacement on the copies."""

    def by_rows(*args: Any, **kwargs: Any) -> Any:
        def run(function: Forward, rows: slice, sources: Sequence[int]) -> Any:
            branch.tell(sources)
            return function(*slice_rows(args, rows, branch.grown), **slice_rows(kwargs, rows, branch.grown))

        random_state = RandomState(branch.device)
        own = run(forward, slice(0, branch.total), branch.own)
        with random_state.again():
            copies = run(replacement, slice(branch.total, branch.grown), branch.copied)
        branch.tell([*branch.own, *branch.copied])
        return _joined(own, copies)

    return by_rows


def _joined(first: Any, second: Any) -> Any:
    """Two layer outputs, a tensor or a tuple of tensors and None, as one of all rows."""
    if isinstance(first, (tuple, list)):
        return type(first)(_joined(*pair) for pair in zip(first, second, strict=True))
    return torch.cat([first, second]) if isinstance(first, Tensor) else first


def forward_replaced(module: nn.Module, forward: Forward) -> AbstractContextManager[None]:
    """Set `module.forward` on the instance for a while: see attribute_replaced."""
    return attribute_replaced(module, "forward", forward)


@contextmanager
def attribute_replaced(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Set an attribute on the instance, and restore its __dict__ exactly: an instance attribute that was there
    (another extension's) comes back, one that wasn't goes away."""
    absent = object()
    before: Any = module.__dict__.get(name, absent)
    try:
        module.__dict__[name] = value
        yield
    finally:
        if before is absent:
            module.__dict__.pop(name, None)
        else:
            module.__dict__[name] = before


def sparing(layers: Sequence[AttentionLayer], function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that does what `function` does, with the layers attending as they do now, even while others replace
    their forwards."""
    now = {layer.module: layer.module.forward for layer in layers}

    def spared(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for module, forward in now.items():
                stack.enter_context(forward_replaced(module, forward))
            return function(*args, **kwargs)

    return spared


def slice_rows(given: Any, rows: slice, total: int) -> Any:
    """The same structure of lists, tuples, dicts and dataclasses with every tensor of `total` rows cut to `rows`.

    Other tensors (scalars, timesteps without a batch dimension) and values pass through.
    """
    if isinstance(given, dict):
        return {name: slice_rows(value, rows, total) for name, value in given.items()}
    if isinstance(given, (list, tuple)):
        return type(given)(slice_rows(value, rows, total) for value in given)
    if is_dataclass(given) and not isinstance(given, type):
        return replace(
            given, **{each.name: slice_rows(getattr(given, each.name), rows, total) for each in fields(given)}
        )
    if hasattr(given, "shape") and len(given.shape) > 0 and given.shape[0] == total:
        return given[rows]
    return given
