"""What is kept of what others' code remembers, and what isn't; whole passes with it: test_counting_hooks.py."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any

from asag.hosts.kept_state import LONGEST, KeptState


def hook_with(**names: Any) -> Callable[..., Any]:
    """A function of a module of its own, whose globals are these names."""
    code = compile("def hook(): return None", "hook.py", "exec").co_consts[0]
    return FunctionType(code, {"__name__": "others_hook", **names}, "hook")


def test_globals_come_back_one_by_one_and_nothing_else_of_a_module_is_touched() -> None:
    tool = SimpleNamespace(mark=1)
    values = {"count": 3, "title": "a", "pair": (1, 2), "bank": [1, [2]], "table": {"at": {5}}, "_hidden": 2.5}
    hook = hook_with(**values, __version__=1, tool=tool, helper=len)
    memory = KeptState([hook])
    found = hook.__globals__
    found.update(count=4, title="b", pair=(), _hidden=0.0, __version__=2, helper=max, tool=None, late=True)
    found["bank"][1].append(9)
    found["bank"].append(8)
    found["table"]["at"].add(6)
    found["table"]["more"] = 1
    memory.restore()
    assert {name: found[name] for name in values} == {**values, "bank": [1, [2]], "table": {"at": {5}}}
    # What isn't state stays as it became.
    assert (found["__version__"], found["helper"], found["tool"], found["late"]) == (2, max, None, True)
    assert tool.mark == 1


def test_containers_are_the_same_ones_afterwards() -> None:
    bank = [1]
    hook = hook_with(bank=bank)
    memory = KeptState([hook])
    bank.append(2)
    hook.__globals__["bank"] = [3]
    memory.restore()
    assert hook.__globals__["bank"] is bank
    assert bank == [1]


def test_long_lists_are_data_and_arent_copied() -> None:
    longest, longer = [0] * 1000, [0] * 1001
    memory = KeptState([hook_with(longest=longest, longer=longer)])
    assert LONGEST == 1000
    longest.append(1)
    longer.append(1)
    memory.restore()
    assert (len(longest), len(longer)) == (1000, 1002)


def test_functions_of_others_that_a_hook_knows_are_left_alone() -> None:
    elsewhere = hook_with(count=1)
    elsewhere.__globals__["__name__"] = elsewhere.__module__ = "another"
    hook = hook_with(call=[elsewhere])
    memory = KeptState([hook])
    elsewhere.__globals__["count"] = 2
    memory.restore()
    assert elsewhere.__globals__["count"] == 2
    # Of a hook's own package it is theirs.
    elsewhere.__globals__["__name__"] = "others_hook.parts"
    memory = KeptState([hook])
    elsewhere.__globals__["count"] = 3
    memory.restore()
    assert elsewhere.__globals__["count"] == 2


def test_a_variable_that_isnt_set_yet_is_no_hindrance() -> None:
    number = 1

    def hook() -> int:
        return number + later

    memory = KeptState([hook])
    number = 5
    later = 2
    memory.restore()
    assert hook() == 3


def test_a_list_that_holds_itself_is_kept_once() -> None:
    bank: list[Any] = [1]
    bank.append(bank)
    memory = KeptState([hook_with(bank=bank)])
    bank.clear()
    memory.restore()
    assert bank[0] == 1
    assert bank[1] is bank


COUNT = 0


class Counter:
    """Counts in its module."""

    def count(self) -> None:
        global COUNT
        COUNT += 1


def test_a_methods_module_is_its_too() -> None:
    counter, before = Counter(), COUNT
    memory = KeptState([counter.count])
    counter.count()
    memory.restore()
    assert before == COUNT
