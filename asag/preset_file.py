"""The file in which users keep presets: a JSON object, read and changed by several tabs, WebUIs and people at once."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

# Seconds; a change takes milliseconds.
PATIENCE = 20
# Lists and objects in one another. Presets need three. Python reads and writes as many as its version and the machine's
# stack allow, and each level indents all below it: 50 000 of them are 100 KB to read and gigabytes to write.
MOST_LEVELS = 100


class PresetError(Exception):
    """What is asked of the presets can't be done; the message says why and what is allowed."""


def lies_too_deep(content: dict[str, Any]) -> bool:
    """Whether a JSON object has more than MOST_LEVELS lists and objects in one another, itself among them."""
    level: list[Any] = [content]
    for _ in range(MOST_LEVELS):
        within = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
        level = [each for each in within if isinstance(each, (dict, list))]
    return bool(level)


class PresetFile:
    """The JSON object in `path`, which need not exist. What it holds is up to its user.

    Changes of several processes come one after another: a lock in a file beside it sees to that. A file that isn't a
    JSON object, or one with too many levels, is moved aside to a name ending in ".broken", and `notice` says so.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notice = ""

    def read(self) -> dict[str, Any]:
        """The object; empty when there is no file. Raises PresetError when the file can't be opened or put aside."""
        try:
            return self._parse()
        except (ValueError, RecursionError):
            with self._locked():
                return self._parse_or_put_aside()

    def change(self, edit: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
        """Replace the object by what `edit` makes of it; what `edit` raises leaves the file as it was."""
        with self._locked():
            self._write(edit(self._parse_or_put_aside()))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # A lock of its own for each use: one that threads share lets all of them in.
            lock = FileLock(f"{self.path}.lock", timeout=PATIENCE)
            lock.acquire()
        except Timeout as error:
            raise PresetError(f"Another process is writing the presets in {self.path.name}: try again") from error
        except (OSError, NotImplementedError) as error:
            # The latter where a file system has no locks.
            reason = getattr(error, "strerror", None) or error
            raise PresetError(f"The presets in {self.path.name} can't be changed: {reason}") from error
        try:
            yield
        finally:
            # One that can't be given back goes with its object.
            with suppress(OSError):
                lock.release()

    def _parse(self) -> dict[str, Any]:
        """Raises ValueError or RecursionError when the file holds no JSON object, PresetError when it can't be read."""
        try:
            # Editors put a byte order mark in front.
            text = self.path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise PresetError(f"The presets in {self.path.name} can't be read: {error.strerror}") from error
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")
        if lies_too_deep(found):
            raise ValueError(f"more than {MOST_LEVELS} nested lists and objects")
        return found

    def _parse_or_put_aside(self) -> dict[str, Any]:
        try:
            return self._parse()
        except (ValueError, RecursionError) as error:
            return self._put_aside(error)

    def _put_aside(self, error: Exception) -> dict[str, Any]:
        aside = self.path.with_name(self.path.name + ".broken")
        number = 2
        reason = f"The file of presets, {self.path.name}, can't be read ({error})"
        try:
            while aside.exists():
                aside = self.path.with_name(f"{self.path.name}.broken{number}")
                number += 1
            os.replace(self.path, aside)
        except OSError as second:
            raise PresetError(f"{reason}, and it can't be moved aside ({second.strerror})") from error
        self.notice = f"{reason}; it is kept as {aside.name}."
        return {}

    def _write(self, content: Mapping[str, Any]) -> None:
        """Whole or not at all: into a file beside it that then takes its place."""
        # A lone surrogate, which JSON may hold and UTF-8 can't, comes out as the escape that JSON has for it.
        written = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        try:
            with tempfile.TemporaryDirectory(dir=self.path.parent, prefix=self.path.name) as folder:
                fresh = Path(folder) / self.path.name
                fresh.write_bytes(written)
                os.replace(fresh, self.path)
        except OSError as error:
            raise PresetError(f"The presets can't be written to {self.path.name}: {error.strerror}") from error
