"""Every call out of asag into a host, its model, torch or the file system has a row in the table."""

from __future__ import annotations

from tests.faults.calls import ROOT, by_row, calls, calls_of
from tests.faults.table import ELSEWHERE, ROWS


def test_each_call_has_a_row_and_each_row_a_call() -> None:
    found = dict(by_row(calls()))
    known = ROWS.keys() | ELSEWHERE.keys()
    missing = [
        f"{row!r} (line {', '.join(str(each.line) for each in made)}, {made[0].kind})"
        for row, made in found.items()
        if row not in known
    ]
    assert not missing, "add to tests/faults/table.py what comes of it when these calls fail: " + "; ".join(missing)
    assert not known - found.keys(), "take out of tests/faults/table.py: nothing makes these calls any more"
    assert not ROWS.keys() & ELSEWHERE.keys()


def test_a_new_call_is_found() -> None:
    """Of each kind one, in a file of asag's that has them in it."""
    source = """
from modules import shared
import torch
import os
def new(model, forward):
    shared.state.begin()
    model.encode_first_stage(1)
    forward(1)
    torch.cat([])
    os.replace("a", "b")
    len([]), sorted([]), model.x.append(1), torch.device("cpu")
"""
    found = calls_of("asag/hosts/new.py", source, set())
    assert [(each.kind, each.row) for each in found] == [
        ("host", "asag/hosts/new.py: new: shared.state.begin"),
        ("host", "asag/hosts/new.py: new: model.encode_first_stage"),
        ("model", "asag/hosts/new.py: new: forward"),
        ("torch", "asag/hosts/new.py: torch"),
        ("file", "asag/hosts/new.py: new: os.replace"),
    ]


def test_the_tests_that_rows_name_exist() -> None:
    named = {word.strip(",") for why in ELSEWHERE.values() for word in why.split() if word.startswith("tests/")}
    assert not [each for each in named if not (ROOT / each.rstrip(":")).exists()]
