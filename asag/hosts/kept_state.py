"""What code of others remembers between two calls of the model: kept, and put back around the perturbed pass.

For the perturbed pass to be the host's own pass with weakened attention, a counter has to stand where it stood then;
and afterwards where the host's pass had left it. As for random numbers (asag.random_state).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

from asag.hosts.other_code import module_of

PLAIN = (type(None), bool, int, float, complex, str, bytes, tuple)
CONTAINERS = (dict, list, set)
# Longer ones hold data rather than state.
LONGEST = 1000
EMPTY_CELL = CellType()


class KeptState:
    """What the functions remember, as it was when this was made.

    That is: plain values and containers in the globals of their modules and in their closures, and the attributes of
    objects whose class the same modules define. Containers are copied, tensors aren't: code that writes into a tensor
    isn't undone.
    """

    def __init__(self, functions: Iterable[Any]) -> None:
        self.functions = list(functions)
        self.homes = {module_of(each).split(".")[0] for each in self.functions}
        self.seen: set[int] = set()
        self.kept: list[tuple[Any, Any]] = []
        for each in self.functions:
            self._keep(each)

    def restore(self) -> None:
        for holder, value in self.kept:
            _put_back(holder, value)

    @contextmanager
    def again(self) -> Iterator[None]:
        """As it was then; afterwards as it is now."""
        now = KeptState(self.functions)
        self.restore()
        try:
            yield
        finally:
            now.restore()

    def _keep(self, given: Any) -> None:
        if id(given) in self.seen or isinstance(given, PLAIN):
            return
        self.seen.add(id(given))
        if isinstance(given, partial):
            for part in (given.func, *given.args, *given.keywords.values()):
                self._keep(part)
        elif isinstance(given, MethodType):
            self._keep(given.__func__)
            self._keep(given.__self__)
        elif isinstance(given, FunctionType):
            self._keep_function(given)
        elif type(given) in CONTAINERS:
            self._keep_container(given)
        elif self._is_theirs(type(given)) and hasattr(given, "__dict__"):
            self.kept.append((given.__dict__, dict(given.__dict__)))
            for each in list(given.__dict__.values()):
                self._keep(each)

    def _keep_function(self, function: FunctionType) -> None:
        if module_of(function).split(".")[0] not in self.homes:
            return
        for cell in function.__closure__ or ():
            if cell != EMPTY_CELL:
                self.kept.append((cell, cell.cell_contents))
                self._keep(cell.cell_contents)
        # Of torch.no_grad(), around theirs, they are torch's.
        is_theirs = function.__globals__.get("__name__", "").split(".")[0] in self.homes
        if is_theirs and id(function.__globals__) not in self.seen:
            self.seen.add(id(function.__globals__))
            values = {name: value for name, value in function.__globals__.items() if _is_state(name, value)}
            self.kept.append((_Globals(function.__globals__), values))
            for value in values.values():
                self._keep(value)

    def _keep_container(self, container: Any) -> None:
        if len(container) > LONGEST:
            return
        self.kept.append((container, type(container)(container)))
        for each in list(container.values() if isinstance(container, dict) else container):
            self._keep(each)

    def _is_theirs(self, defined: Any) -> bool:
        return (getattr(defined, "__module__", None) or "").split(".")[0] in self.homes


class _Globals:
    """A module's globals: of those only state is put back, so that nothing else of the module is touched."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.names = names


def _is_state(name: str, value: Any) -> bool:
    return not name.startswith("__") and (isinstance(value, PLAIN) or type(value) in CONTAINERS)


def _put_back(holder: Any, value: Any) -> None:
    if isinstance(holder, CellType):
        holder.cell_contents = value
    elif isinstance(holder, _Globals):
        holder.names.update(value)
    elif isinstance(holder, list):
        holder[:] = value
    else:
        holder.clear()
        holder.update(value)
