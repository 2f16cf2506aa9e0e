"""What the user is told of a picture: under the images, and in the infotext, which is what API clients get.

The answer of a host's API has no comments (modules/processing.py: Processed.js); it has the infotext of each picture
and the last batch's `extra_generation_params`.
"""

from __future__ import annotations

from typing import Any

# Not the key of the settings, so that pasting doesn't read it.
KEY = "ASAG note"


def note(p: Any, message: str) -> None:
    """Tell of the batch that is generated now. A message that was told already isn't told again."""
    p.comment(message)
    told = p.extra_generation_params.get(KEY, "")
    if message not in told:
        p.extra_generation_params[KEY] = f"{told}; {message}" if told else message


def forget(p: Any) -> None:
    """A batch begins: what was told of the one before isn't true of it. A plot's cells share their parameters."""
    p.extra_generation_params.pop(KEY, None)
