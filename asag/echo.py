"""Values from outside as error messages show them: short, however long they are."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST_VALUE = 60
MOST_NAMES = 8


def shown(value: object) -> str:
    """A value as Python writes it, cut to LONGEST_VALUE characters of it with its length behind."""
    if isinstance(value, (str, bytes)):
        # Cut before it is written: what is written may be four times as long.
        return f"{value[:LONGEST_VALUE]!r}{_rest(len(value))}"
    try:
        written = repr(value)
    except Exception:
        # A number of more digits than Python writes, a list in a list a thousand times.
        return f"a {type(value).__name__}"
    return written[:LONGEST_VALUE] + _rest(len(written))


def shown_names(names: Sequence[object]) -> str:
    """Names with commas, the first MOST_NAMES of them, each cut, with the number of the others behind."""
    named = ", ".join(_shown_name(name) for name in names[:MOST_NAMES])
    return named if len(names) <= MOST_NAMES else f"{named} and {len(names) - MOST_NAMES} more"


def _shown_name(name: object) -> str:
    """Without quotes; what isn't printable, and what UTF-8 and so an answer can't hold, as Python escapes it."""
    text = name[:LONGEST_VALUE] if isinstance(name, str) else shown(name)
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _rest(length: int) -> str:
    return f"… ({length} characters)" if length > LONGEST_VALUE else ""
