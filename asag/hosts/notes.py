"""Notes for the user about a picture: under the images, and in the infotext, which is what API clients get.

The answer of a host's API has no comments (modules/processing.py: Processed.js); it has the infotext of each picture
and the last batch's `extra_generation_params`.
"""

from __future__ import annotations

from typing import Any

from asag.hosts import adetailer

# Not the key of the settings, so that pasting doesn't read it.
KEY = "ASAG note"


def note(p: Any, message: str) -> None:
    """A note about the batch that is generated now. The same message is noted once."""
    p.comment(message)
    noted = p.extra_generation_params.get(KEY, "")
    if message not in noted:
        p.extra_generation_params[KEY] = f"{noted}; {message}" if noted else message


def note_unguided_inpainting(p: Any) -> None:
    """A note when ADetailer is on and will not run ASAG's script for its inpainting."""
    message = adetailer.unguided_inpainting(p)
    if message:
        note(p, message)


def forget(p: Any) -> None:
    """A batch begins: what was noted of the one before isn't true of it. A plot's cells share their parameters."""
    p.extra_generation_params.pop(KEY, None)
