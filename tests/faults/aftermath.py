"""What comes of a fault: what the user is told, what the picture is, and whether anything is left behind."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asag.hosts.refused import Refused
from tests.faults.calls import Call
from tests.faults.injection import FAULTS, MESSAGE, Faults, led
from tests.faults.places import Place, place

# What may come of a call that fails, as the table says it.
REFUSED = "refused"  # the request ends with one sentence of ASAG's, which is in the log once
RAISED = "raised"  # whoever called gets the error itself: diffusers, and what goes wrong in the host's own pass
WHOLE_PASS = "a whole pass"  # a whole extra pass takes its place, which a note and one line in the log say
NOTED = "noted"  # the picture is as it would have been; a note and one line in the log say what isn't known
SAME = "the same"  # the picture is as it would have been, and there is nothing to tell
LEFT_OUT = "left out"  # NaN: the step goes unguided, which one line in the log says, and in a WebUI a note
HOSTS_OWN = "the host's own"  # NaN in what the model gives the host itself: its picture, with ASAG or without


@dataclass(frozen=True)
class Case:
    """A fault of a kind, at the `hit`-th run of a call in a guided picture."""

    kind: str
    way: str
    key: str
    hit: int

    def __str__(self) -> str:
        return f"{self.kind} at run {self.hit} of {self.key} ({self.way})"


class Examined:
    """A place that is well: what its pictures are then, against which faults are held."""

    def __init__(self, place: Place, faults: Faults) -> None:
        self.place, self.faults = place, faults
        self.plain = place.plain()
        self.guided: dict[str, list[Tensor]] = {}
        # Of each way, how often each call runs.
        self.runs: dict[str, dict[str, int]] = {}
        for name, run in place.ways.items():
            self.guided[name] = run()
            faults.hits.clear()
            run()
            self.runs[name] = dict(faults.hits)
        self.state = place.state()
        place.plain()
        place.let_go()
        self.tensors = tensors()

    def reached(self, row: str) -> list[str]:
        """The calls of a row that run here."""
        found = {key: None for hits in self.runs.values() for key in hits if key.startswith(f"{row} at ")}
        return list(found)

    def cases(self, row: str, with_nan: bool) -> Iterator[Case]:
        """Each call of the row fails; where it stands for a file's, the first, one in the middle and the last."""
        keys = self.reached(row)
        if row.endswith(": torch"):
            keys = list(dict.fromkeys([keys[0], keys[len(keys) // 2], keys[-1]]))
        for key in keys:
            way = next(name for name, hits in self.runs.items() if key in hits)
            last = self.runs[way][key] - 1
            yield Case("error", way, key, 0)
            if with_nan and key in self.faults.give_numbers:
                yield Case("nan", way, key, last)
            if key == keys[0]:
                yield Case("memory", way, key, last)
                yield Case("interrupt", way, key, 0)

    def after(self, case: Case) -> tuple[str, list[str]]:
        """What came of it, and what is wrong with it."""
        problems: list[str] = []
        with logged() as lines:
            found, error = self._run(case)
        outcome = self._outcome(case.way, found, error, lines, problems)
        del found, error
        return outcome, problems + self._left_behind(case)

    def _run(self, case: Case) -> tuple[Any, BaseException | None]:
        with self.faults.at(case.key, case.hit, FAULTS[case.kind]):
            try:
                return self.place.ways[case.way](), None
            except BaseException as error:
                return None, error.with_traceback(None)

    def _outcome(self, way: str, found: Any, error: BaseException | None, lines: list[str], problems: list[str]) -> str:
        if error is None:
            return self._finished(way, found, lines, problems)
        if isinstance(error, Refused):
            if not (error.detail.startswith("ASAG") and MESSAGE in error.detail) or "\n" in error.detail:
                problems.append(f"the user is told {error.detail!r}")
            if lines != [error.detail]:
                problems.append(f"the log has {lines}")
            return REFUSED
        if MESSAGE not in str(error):
            problems.append(f"{type(error).__name__} came out: {error}")
        if lines:
            problems.append(f"the log has {lines}")
        return RAISED

    def _finished(self, way: str, found: list[Tensor], lines: list[str], problems: list[str]) -> str:
        if not all(each.isfinite().all() for each in found):
            return HOSTS_OWN
        guided = self.guided[way]
        if all(map(torch.equal, found, guided)) and not lines:
            return SAME
        if len(lines) != 1:
            problems.append(f"the log has {lines}")
        told = " ".join(self.place.notes()) if self.place.has_notes else " ".join(lines)
        if "left out its push" in told:
            return LEFT_OUT
        if not all(torch.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in zip(found, guided, strict=True)):
            problems.append(f"the picture is another one, and what is told is {told!r}")
        if "whole extra pass" not in told and "can't say" not in told:
            problems.append(f"what is told is {told!r}")
        return WHOLE_PASS if "whole extra pass" in told else NOTED

    def _left_behind(self, case: Case) -> list[str]:
        problems = []
        self.place.let_go()
        if self.place.state() != self.state:
            problems.append("something is left in the model or the host")
        if tensors() != self.tensors:
            problems.append(f"{tensors() - self.tensors} tensors are left")
        if not all(map(torch.equal, self.place.plain(), self.plain)):
            problems.append("the next plain picture is another one")
        if case.kind == "error" and not all(map(torch.equal, self.place.ways[case.way](), self.guided[case.way])):
            problems.append("the next guided picture is another one")
        return problems


@contextmanager
def examined(name: str, calls: Sequence[Call]) -> Iterator[Examined]:
    """The adapter of that name, whose calls can fail while this is open."""
    with place(name) as found, led(calls) as faults:
        # What is there already isn't counted again and again.
        gc.collect()
        gc.freeze()
        try:
            yield Examined(found, faults)
        finally:
            gc.unfreeze()


def tensors() -> int:
    """How many there are beside those that gc.freeze put aside."""
    gc.collect()
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects())


@contextmanager
def logged() -> Iterator[list[str]]:
    """The lines that ASAG puts into the log, warnings and worse."""
    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger("asag"), Kept(logging.WARNING)
    logger.addHandler(handler)
    # pytest keeps errors that are logged, and with them what they hold.
    before, logger.propagate = logger.propagate, False
    try:
        yield lines
    finally:
        logger.propagate = before
        logger.removeHandler(handler)
