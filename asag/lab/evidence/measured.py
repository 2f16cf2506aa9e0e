"""The lines of a plan that are there already: what need not be measured again, and where new ones go."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from asag.lab.evidence.lines import Line, read_lines, write_lines
from asag.lab.evidence.plans import Cell, Plan


class Measured:
    """The file of a plan's lines. Several processes may add to it: each reads it again before it writes, and once more
    at its end adds whatever is complete, so the last one leaves nothing out."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        self.order = {_identity_of(cell): i for i, cell in enumerate(plan.cells)}

    def lines(self) -> list[Line]:
        """In the plan's order. Lines that the plan doesn't have any more, of other weights or scales, are left out."""
        known = [line for line in read_lines(self.path) if _identity(line) in self.order]
        return sorted(known, key=lambda line: self.order[_identity(line)])

    def lacks(self, cells: Iterable[Cell], samples: int) -> list[Cell]:
        """Those of `cells` that have no line of at least so many samples."""
        there = {_identity(line) for line in self.lines() if line["samples"] >= samples}
        return [cell for cell in cells if _identity_of(cell) not in there]

    def add(self, lines: Iterable[Line]) -> None:
        """Write new lines, each in the place of the old one of its cell."""
        new = {_identity(line): line for line in lines}
        if new:
            merged = {_identity(line): line for line in self.lines()} | new
            write_lines(self.path, sorted(merged.values(), key=lambda line: self.order[_identity(line)]))


def _identity(line: Line) -> tuple[str, ...]:
    return tuple(line[name] for name in ("condition", "protocol", "method", "run", "baseline"))


def _identity_of(cell: Cell) -> tuple[str, ...]:
    return (cell.condition, cell.protocol, cell.method, cell.run.key, cell.baseline.key)
