"""What the parts yield: lines, each a JSON object."""

from __future__ import annotations

from typing import Any

Line = dict[str, Any]


class NothingToMeasure(RuntimeError):
    """What a part needs isn't there; the message says what."""
