"""Makes single calls out of the extension fail in a running WebUI, for the tests. No extension for users.

POST /asag-probe/faults/open: from now on calls into the host, its model and torch are counted. Answers with nothing.
GET /asag-probe/faults/runs: which of them ran since the last question, by key, and how often; `numbers`, those that
gave tensors of floating point.
POST /asag-probe/faults/at?key=…&hit=…&kind=…: from now on the hit-th run of that call, from 0, fails by that kind of
tests/faults/injection.py. Without a key none fails.
POST /asag-probe/faults/close: the calls are as they were.
"""

import importlib
import sys
from contextlib import ExitStack
from pathlib import Path

from modules import script_callbacks


def ours(name):
    """A module of the tests, by the path under which the host has the extension: functions are found by their files."""
    repository = str(Path(importlib.import_module("asag").__file__).parents[1])
    sys.path.insert(0, repository)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(repository)


class Faulty:
    """The calls that are led through tests/faults/injection.py, while it is open."""

    def __init__(self):
        self.stack = ExitStack()
        self.faults = None

    def open(self):
        found = [each for each in ours("tests.faults.calls").calls() if each.kind != "file"]
        self.faults = self.stack.enter_context(ours("tests.faults.injection").led(found))
        return {}

    def runs(self):
        told = {"runs": dict(self.faults.hits), "numbers": sorted(self.faults.give_numbers)}
        self.faults.hits.clear()
        return told

    def at(self, key: str = "", hit: int = 0, kind: str = ""):
        self.faults.hits.clear()
        self.faults.key, self.faults.hit = key, hit
        self.faults.fail = ours("tests.faults.injection").FAULTS[kind] if key else None
        return {"armed": key}

    def close(self):
        self.stack.close()
        return {}


def add_routes(_, app):
    faulty = Faulty()
    app.post("/asag-probe/faults/open")(faulty.open)
    app.get("/asag-probe/faults/runs")(faulty.runs)
    app.post("/asag-probe/faults/at")(faulty.at)
    app.post("/asag-probe/faults/close")(faulty.close)


script_callbacks.on_app_started(add_routes)
