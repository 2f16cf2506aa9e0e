"""Prefix reuse: perturbed rows that branch off inside the host's own forward pass.

A perturbed pass differs from the normal one only from the first perturbed layer on. So the model runs once: what comes
before that layer on the rows as they are, and from there on with the wanted rows a second time, of which the copies
are perturbed. Everything after the branch runs as one batch; ControlNet's residuals, adapters and wrappers count for
both, and nothing before the branch is computed twice.

A model is a row of stages (modules run one after another) with row-wise operations between them: skip connections,
residuals that ControlNet adds. Inside a stage tensors are plain. Between stages they are of a tensor subclass, whose
operations also copy the rows of whatever still has the old number of them; it costs nothing where it isn't used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

# Called with which of its own rows each row now is, whenever that changes.
Tell = Callable[[Sequence[int]], None]


class RowBranch:
    """One forward pass of `total` rows, of which `rows` are there a second time from `stages[first]` on."""

    def __init__(
        self, stages: Sequence[nn.Module], first: int, rows: slice, total: int, tell: Tell = lambda rows: None
    ) -> None:
        self.stages, self.first = stages, first
        self.rows, self.total = rows, total
        self.own, self.copied = range(total), range(total)[rows]
        self.grown = total + len(self.copied)
        self.tell = tell
        self.reached = False
        self.device = torch.device("cpu")

    @contextmanager
    def open(self) -> Iterator[None]:
        """While open, a forward pass of the model branches. What it returns then has `grown` rows."""
        with ExitStack() as stack:
            stack.callback(self.tell, self.own)
            for index, stage in enumerate(self.stages):
                before = self._enter if index < self.first else self._enter_grown
                stack.callback(stage.register_forward_pre_hook(before, with_kwargs=True).remove)
                stack.callback(stage.register_forward_hook(self._leave).remove)
            yield

    def grow(self, tensor: Tensor) -> Tensor:
        """A tensor of `total` rows with the wanted rows once more after them; any other as it is."""
        if tensor.ndim == 0 or tensor.shape[0] != self.total:
            return tensor
        self.device = tensor.device
        return torch.cat([tensor, tensor[self.rows]])

    def growing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that takes lists of one entry for each of the host's rows, given them for all rows."""

        def entries(given: Any) -> Any:
            fits = self.reached and type(given) is list and len(given) == self.total
            return [*given, *given[self.rows]] if fits else given

        def grown(*args: Any, **kwargs: Any) -> Any:
            return function(*map(entries, args), **{name: entries(value) for name, value in kwargs.items()})

        return grown

    def split(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """The model's own rows and the perturbed ones, of what it returned while this was open.

        Raises RuntimeError when the model didn't come by a perturbed layer, or did something else with its rows.
        """
        if not self.reached or output.shape[0] != self.grown:
            raise RuntimeError(f"{output.shape[0]} rows came out of the model; allowed: {self.grown}, after branching")
        rows = _plain(output)
        return rows[: self.total], rows[self.total :]

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _all(_plain, args, kwargs)

    def _enter_grown(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.reached:
            self.reached = True
            self.tell([*self.own, *self.copied])
        return _all(lambda tensor: self.grow(_plain(tensor)), args, kwargs)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return mapped(self.at_boundary, output)

    def at_boundary(self, tensor: Tensor) -> Tensor:
        """The tensor as what flows between two stages."""
        found = tensor.as_subclass(_Boundary)
        found.branch = self
        return found


class _Boundary(Tensor):
    """A tensor between two stages: operations on it copy the rows of those operands that haven't got them yet."""

    branch: RowBranch

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        branch = next(each.branch for each in _tensors((args, kwargs)) if isinstance(each, _Boundary))
        args, kwargs = _all(_plain, args, kwargs)
        # Weights have fewer dimensions than what flows between stages.
        sizes = {tensor.shape[0] for tensor in _tensors(args) if tensor.ndim > 2}
        if branch.total in sizes and branch.grown in sizes:
            args, kwargs = _all(branch.grow, args, kwargs)
        elif func in _SHAPING and branch.grown in sizes and len(args) > 1:
            args = (args[0], *_shape_of_grown(args[1:], branch))
        return mapped(branch.at_boundary, func(*args, **kwargs))


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Tensor) if isinstance(tensor, _Boundary) else tensor


def _tensors(given: Any) -> list[Tensor]:
    """The tensors in an operation's arguments."""
    if isinstance(given, Tensor):
        return [given]
    if isinstance(given, dict):
        given = list(given.values())
    return [tensor for each in given for tensor in _tensors(each)] if isinstance(given, (list, tuple)) else []


# A model may have kept its number of rows from before, to shape what comes out of its last block.
_SHAPING = (Tensor.view, Tensor.reshape)


def _shape_of_grown(shape: tuple[Any, ...], branch: RowBranch) -> tuple[Any, ...]:
    sizes = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    return (branch.grown, *sizes[1:]) if sizes[0] == branch.total else shape


def _all(
    function: Callable[[Tensor], Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return mapped(function, args), {name: mapped(function, value) for name, value in kwargs.items()}


def mapped(function: Callable[[Tensor], Tensor], given: Any) -> Any:
    """The same nested structure of lists and tuples with every tensor put through `function`.

    So it goes through dataclasses (Chroma's modulations). Dicts are the host's options, which modules also write to:
    they are passed on as they are.
    """
    if isinstance(given, Tensor):
        return function(given)
    if type(given) in (list, tuple):
        return type(given)(mapped(function, value) for value in given)
    if is_dataclass(given) and not isinstance(given, (type, dict)):
        return replace(given, **{each.name: mapped(function, getattr(given, each.name)) for each in fields(given)})
    return given
