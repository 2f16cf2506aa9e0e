"""The measured lines: JSON, one a cell, in files that are replaced whole; and Markdown tables of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]

OUT = Path("docs/evidence")


def read_lines(path: Path) -> list[Line]:
    """The lines of a file; none where it hasn't been measured."""
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def write_lines(path: Path, lines: Iterable[Line]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".part")
    written.write_text("".join(json.dumps(each) + "\n" for each in lines))
    written.replace(path)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))
