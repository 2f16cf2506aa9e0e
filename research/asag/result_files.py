"""The lines of a plan that are there already: what need not be measured again, and where new ones go."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from research.asag.cells import Cell, Plan
from research.asag.sample_size import Size
from research.lines import Line, lock, read_lines, write_lines

ROOM = Path(__file__).parent  # holds results/, images/ and the page


class Measured:
    """The file of a plan's lines, which several processes may add to."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        self.order = {_place_of(cell): i for i, cell in enumerate(plan.cells)}

    def lines(self) -> list[Line]:
        """In the plan's order, those last that the plan doesn't have, of other weights or scales."""
        return self._sorted(read_lines(self.path))

    def _sorted(self, lines: Iterable[Line]) -> list[Line]:
        return sorted(lines, key=lambda line: self.order.get(_place(line), len(self.order)))

    def lacks(self, cells: Iterable[Cell], size: Size) -> list[Cell]:
        """Those of `cells` that have no line of as many pictures, or none that is compared with their rival."""
        there = {(*_place(line), line.get("rival")) for line in self.lines() if size.within(line)}
        return [cell for cell in cells if (*_place_of(cell), cell.rival and cell.rival.key) not in there]

    def add(self, lines: Iterable[Line]) -> None:
        """Write new lines, each in the place of the old one of its cell, unless that has more pictures."""
        new = list(lines)
        if not new:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with lock(self.path):
            merged = {_place(line): line for line in self.lines()}
            for line in new:
                old = merged.get(_place(line))
                if old is None or old["samples"] <= line["samples"]:
                    merged[_place(line)] = line
            write_lines(self.path, self._sorted(merged.values()))

    def prune(self) -> int:
        """Drop the lines that the plan doesn't have; how many they were."""
        if not self.path.exists():
            return 0
        with lock(self.path):
            lines = self.lines()
            kept = [line for line in lines if _place(line) in self.order]
            write_lines(self.path, kept)
        return len(lines) - len(kept)


def _place(line: Line) -> tuple[str, ...]:
    return tuple(line[name] for name in ("condition", "protocol", "method", "run", "baseline"))


def _place_of(cell: Cell) -> tuple[str, ...]:
    return (cell.condition, cell.protocol, cell.method, cell.run.key, cell.baseline.key)
