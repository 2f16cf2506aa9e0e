"""Faults at the calls that asag makes: each call out is led through one function, which may fail in its place.

The functions of asag that make such calls get new code for a while: the same, but for `f(x)`, which becomes
`_asag_fault(call, f, x)`. Nothing of asag knows of it.
"""

from __future__ import annotations

import ast
import builtins
import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor

from tests.faults.calls import ROOT, Call

NAME = "_asag_fault"
# What a fault raises says so, and of what kind it is.
MESSAGE = "the failure that was asked for"


@dataclass
class Faults:
    """Which calls ran, how often, by their keys; and the one whose `hit`-th run, from 0, fails: by what `fail` does."""

    hits: dict[str, int] = field(default_factory=dict)
    # The calls that gave tensors of floating point.
    give_numbers: set[str] = field(default_factory=set)
    key: str = ""
    hit: int = 0
    fail: Callable[[Any], Any] | None = None

    def call(self, key: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        number = self.hits.get(key, 0)
        self.hits[key] = number + 1
        if key == self.key and number == self.hit and self.fail is not None:
            return self.fail(lambda: function(*args, **kwargs))
        result = function(*args, **kwargs)
        if self.fail is None and holds_numbers(result):
            self.give_numbers.add(key)
        return result

    @contextmanager
    def at(self, key: str, hit: int, fail: Callable[[Any], Any]) -> Iterator[None]:
        """While open, that run of that call fails."""
        self.hits.clear()
        self.key, self.hit, self.fail = key, hit, fail
        try:
            yield
        finally:
            self.key, self.hit, self.fail = "", 0, None


def raising(error: type[BaseException]) -> Callable[[Any], Any]:
    """The call raises an error of that kind."""

    def fail(call: Any) -> Any:
        raise error(MESSAGE)

    return fail


def not_a_number(call: Any) -> Any:
    """The call gives tensors of NaN."""
    return with_nan(call())


def holds_numbers(given: Any) -> bool:
    if isinstance(given, (list, tuple)):
        return any(map(holds_numbers, given))
    # Not by its methods: what flows in a branch is told of each.
    with torch._C.DisableTorchFunction():
        return isinstance(given, Tensor) and given.is_floating_point()


def with_nan(given: Any) -> Any:
    if type(given) in (list, tuple):
        return type(given)(map(with_nan, given))
    if not holds_numbers(given):
        return given
    return torch.full_like(given, math.nan)


class _Leading(ast.NodeTransformer):
    """Leads the calls at these lines and columns through NAME."""

    def __init__(self, keys: dict[tuple[int, int, int], str]) -> None:
        self.keys = keys

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        key = self.keys.pop((node.lineno, node.col_offset, node.end_col_offset), None)
        if key is None:
            return node
        led = ast.Call(ast.Name(NAME, ast.Load()), [ast.Constant(key), node.func, *node.args], node.keywords)
        return ast.copy_location(led, node)


def _codes(code: CodeType) -> Iterator[CodeType]:
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield each
            yield from _codes(each)


def _key(code: CodeType) -> tuple[str, int, tuple[str, ...]]:
    return code.co_name, code.co_firstlineno, code.co_freevars


@cache
def _led_codes(calls: tuple[Call, ...]) -> dict[str, dict[Any, CodeType]]:
    """By file, the code of its functions in which these calls are led through NAME."""
    new = {}
    for path in sorted({each.path for each in calls}):
        keys = {each.span: each.key for each in calls if each.path == path}
        file = str(ROOT / path)
        tree = _Leading(keys).visit(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        code = compile(ast.fix_missing_locations(tree), file, "exec", dont_inherit=True)
        new[file] = {_key(each): each for each in _codes(code)}
    return new


@contextmanager
def led(calls: Sequence[Call]) -> Iterator[Faults]:
    """While open, these calls of all functions of asag that exist now are led through the Faults that this yields."""
    faults, new = Faults(), _led_codes(tuple(calls))
    before: list[tuple[FunctionType, CodeType]] = []
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and function.__code__.co_filename in new:
            code = new[function.__code__.co_filename].get(_key(function.__code__))
            if code is not None:
                before.append((function, function.__code__))
                function.__code__ = code
    setattr(builtins, NAME, faults.call)
    try:
        yield faults
    finally:
        for function, code in before:
            function.__code__ = code
        delattr(builtins, NAME)


FAULTS: dict[str, Callable[[Any], Any]] = {
    "error": raising(RuntimeError),
    "memory": raising(torch.cuda.OutOfMemoryError),
    "interrupt": raising(KeyboardInterrupt),
    "nan": not_a_number,
}
