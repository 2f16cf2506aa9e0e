"""The measured lines: JSON, one a cell, in files that are replaced whole; and Markdown tables of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

Line = dict[str, Any]


def read_lines(path: Path) -> list[Line]:
    """The lines of a file; none where it hasn't been measured."""
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def write_lines(path: Path, lines: Iterable[Line]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, "".join(json.dumps(each) + "\n" for each in lines))


def lock(path: Path) -> FileLock:
    """For reading a file, changing it and writing it again, while other processes do the same."""
    return FileLock(path.with_suffix(".lock"))


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, whichever other processes write it, too."""
    written = path.with_suffix(f".{os.getpid()}")
    written.write_text(text)
    written.replace(path)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))
