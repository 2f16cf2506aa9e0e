"""Numbers in the report's prose: `{FILE WORDS: METRIC}` in a text becomes what the measured lines say.

FILE is a file of results without its ending. Each of WORDS picks lines: u or c (without captions, with them), a
protocol, a method (paper-plan for "paper plan"), a block of `directions`, or `name=value` for a setting or a field.
Several values are separated by commas; `none` is the value of what isn't set. METRIC is one of:

    fd            a metric, in the unit of the tables (KID times 1000; objects right and clipped in per cent)
    fd σ          how far it is from the baseline (no guidance or CFG alone), in paired standard errors
    fd σ to ASAG  how far it is from the line that it is compared with, ASAG's in most files
    fd change     how far it is from the baseline, in the metric's unit
    fd error      the standard error of that
    fd to paper   how far it is from the same in the paper's unit; with `error` behind it, the standard error of that
    fd % off      how far below the baseline it is, in per cent of it
    size/a/0      a number inside a line, by keys and places in lists; with % behind it, in per cent

One line has to fit, or `least`, `most` or `mean` stands before METRIC. A number at the end, as in `fd 0`, is how many
digits follow the point.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.asag.tables import as_titled
from research.lines import Line, read_lines

_PLACE = re.compile(r"\{([^{}:]+): ([^{}]+)\}")
_CONDITIONS = {"u": "unconditional", "c": "conditional"}
_DIGITS = {"fd": 1, "kid": 1, "right": 1, "fd_layout": 3}
_KEYS = {"": "value", "change": "to_baseline", "error": "to_baseline_error"}
_KEYS |= {"to paper": "to_paper", "to paper error": "to_paper_error"}
_LARGE = 150.0  # an FD from here on has no digits after the point


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


_RULES: dict[str, Callable[[list[float]], float]] = {"least": min, "most": max, "mean": _mean}


class PlaceError(ValueError):
    """A place in a text that doesn't name one number; the message says which and why."""


@dataclass(frozen=True)
class Numbers:
    """The measured lines below `room`, the folder of all research."""

    room: Path

    def fill(self, text: str) -> str:
        """The text with its numbers. Raises PlaceError."""
        return _PLACE.sub(lambda place: self.number(place[1], place[2]), text)

    def number(self, where: str, what: str) -> str:
        """The number of one place. Raises PlaceError."""
        lines = self._lines(where)
        what, digits = _with_digits(what)
        first, _, rest = what.partition(" ")
        rule = _RULES.get(first)
        if not lines or (rule is None and len(lines) != 1):
            raise PlaceError(f"{{{where}: {what}}}: {len(lines)} lines fit")
        metric = rest if rule else what
        values = [_value(line, metric) for line in lines]
        return _shown(rule(values) if rule else values[0], metric, digits)

    def line(self, where: str) -> Line:
        """The one line that FILE WORDS names. Raises PlaceError."""
        lines = self._lines(where)
        if len(lines) != 1:
            raise PlaceError(f"{{{where}}}: {len(lines)} lines fit")
        return lines[0]

    def _lines(self, where: str) -> list[Line]:
        name, *words = where.split()
        return [line for line in self._file(name) if all(_picked(line, word) for word in words)]

    def _file(self, name: str) -> list[Line]:
        paths = sorted(self.room.glob(f"*/results/{name}.jsonl"))
        if len(paths) != 1:
            raise PlaceError(f"{len(paths)} files of results are called {name}.jsonl")
        return read_lines(paths[0])


def _with_digits(what: str) -> tuple[str, int | None]:
    """The metric, and how many digits it is to have after the point."""
    head, _, last = what.rpartition(" ")
    return (head, int(last)) if last.isdigit() else (what, None)


def _picked(line: Line, word: str) -> bool:
    """Whether one of a place's words fits a line."""
    if word in _CONDITIONS:
        return bool(line["condition"] == _CONDITIONS[word])
    name, found, values = word.partition("=")
    if not found:
        names = (line.get("protocol"), re.sub(r"\W+", "-", line["method"]), line.get("block"))
        return any(each in names for each in word.split(","))
    held = line.get("settings", {}).get(name, line.get(name))
    return any(_equal(held, value) for value in values.split(","))


def _equal(held: Any, value: str) -> bool:
    if held is None or value == "none":
        return held is None and value == "none"
    return str(held) == value or (isinstance(held, float | int) and f"{held:g}" == value)


def _value(line: Line, what: str) -> float:
    """What a line says, in the unit of the tables and without a sign."""
    name, _, how = what.partition(" ")
    metric = line.get("metrics", {}).get(name)
    if metric is None:
        return _inside(line, name) * (100 if how == "%" else 1)
    if how == "σ":
        return abs(float(metric["to_baseline"] / metric["to_baseline_error"]))
    if how == "σ to ASAG":
        return abs(float(metric["to_asag"] / metric["to_asag_error"]))
    if how == "% off":
        return float(-100 * metric["to_baseline"] / (metric["value"] - metric["to_baseline"]))
    value = abs(metric[_KEYS[how]])
    return 100 * value if name in ("right", "clipped") else as_titled(value, name)


def _inside(line: Line, path: str) -> float:
    found: Any = line
    for key in path.split("/"):
        found = found[int(key)] if isinstance(found, list) else found[key]
    return float(found)


def _shown(value: float, what: str, digits: int | None) -> str:
    name, _, how = what.partition(" ")
    if digits is None and how.startswith("σ"):
        # More digits around 3, from where on a difference is called one.
        digits = 2 if 2.95 <= value < 3.05 else 1 if value < 10 else 0
    elif digits is None and how == "% off":
        digits = 0
    elif digits is None:
        digits = 0 if name == "fd" and value >= _LARGE else _DIGITS.get(name, 2)
    return f"{value:.{digits}f}"
