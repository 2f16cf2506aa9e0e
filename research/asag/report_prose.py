"""The report's written pages: texts with their numbers filled in, and their lines wrapped."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from research.asag.report_numbers import Numbers

_WIDTH = 120
_TOGETHER = re.compile(r" (?=[σ%])|(?<=CFG) (?=\d)")  # blanks at which no line ends
# A text in the folder `texts`, and the page that it becomes, from the folder of this paper's research.
PAGES = {"findings.txt": "findings.md", "research.txt": "../README.md"}


def pages(folder: Path) -> Iterator[tuple[Path, str]]:
    """Each page that has a text in `folder`, and what it says now. Raises report_numbers.PlaceError."""
    for name, page in PAGES.items():
        if text := filled(folder, name):
            yield (folder / page).resolve(), text


def filled(folder: Path, name: str) -> str:
    """A text with its numbers; nothing where there is none. Raises report_numbers.PlaceError."""
    text = folder / "texts" / name
    return wrapped(Numbers(folder.parent).fill(text.read_text())) if text.exists() else ""


def wrapped(text: str) -> str:
    """Markdown whose paragraphs and list items are wrapped anew; tables, headings and code stay."""
    return "\n".join(_wrap(block) for block in _blocks(text.splitlines())) + "\n"


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """A paragraph or list item each, and every other line by itself."""
    block: list[str] = []
    for line in lines:
        if block and (_alone(line) or _alone(block[0]) or line.lstrip().startswith("- ")):
            yield block
            block = []
        block.append(line)
    if block:
        yield block


def _alone(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith(("|", "#", "!", "<", "    "))


def _wrap(block: list[str]) -> str:
    if _alone(block[0]):
        return block[0]
    indent = block[0][: len(block[0]) - len(block[0].lstrip())]
    after = indent + ("  " if block[0].lstrip().startswith("- ") else "")
    words = _TOGETHER.sub("\0", " ".join(line.strip() for line in block))
    wrapper = textwrap.TextWrapper(
        _WIDTH, initial_indent=indent, subsequent_indent=after, break_long_words=False, break_on_hyphens=False
    )
    return wrapper.fill(words).replace("\0", " ")
