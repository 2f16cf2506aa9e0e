"""The folder of renderings: which picture has which name and group, and which names are held out of training.

The folder is one in which `npm install @lobehub/fluent-emoji-3d@1.1.0 emojibase-data@17.0.0` was run: both packages lie
in its node_modules, and both have the MIT licence.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PICTURES = Path("node_modules/@lobehub/fluent-emoji-3d/assets")
NAMES = Path("node_modules/emojibase-data/en")
HELD_OUT = 150
_COMPONENTS, _FLAGS = 2, 9  # emojibase's numbers of the groups that are left out
_TWICE_SAID = "fe0f"  # a code that only asks for a colour picture: files are named with it and without

COLOURS = frozenset(
    {"red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white", "grey", "pink"}
    | {"light", "dark", "blond", "gold"}
)
# A mirror image of these isn't what the name says, or shows mirrored letters.
_NOT_MIRRORED_GROUPS = ("symbols",)
_NOT_MIRRORED_SUBGROUPS = ("time", "books & paper", "money", "award medals", "weather")
_NOT_MIRRORED = frozenset(
    {"left", "right", "leftwards", "rightwards", "moon", "quarter", "crescent", "arrow", "map", "globe"}
    | {"calendar", "hundred", "button", "sign", "keycap", "input", "die", "label", "ticket", "abacus"}
    | {"mailbox", "memo", "computer", "chart", "increasing", "decreasing"}
)


class Rendering(NamedTuple):
    """A picture's file, its name in lower case, its group and its subgroup."""

    path: Path
    name: str
    group: str
    subgroup: str

    @property
    def mirrors(self) -> bool:
        """Whether its mirror image still is what the name says."""
        kept = self.group in _NOT_MIRRORED_GROUPS or self.subgroup in _NOT_MIRRORED_SUBGROUPS
        return not kept and _NOT_MIRRORED.isdisjoint(words(self.name))

    @property
    def names_colour(self) -> bool:
        """Whether its name says a colour, so that its hue must stay."""
        return not COLOURS.isdisjoint(words(self.name))


def words(text: str) -> list[str]:
    """The words of a name in lower case; hyphens part words, and a genitive's s is dropped."""
    return re.findall(r"[^\W_]+(?:’[^\W_]+)*|[#*!?]", re.sub(r"’s\b", "", text.lower().replace("'", "’")))


def read(folder: Path) -> list[Rendering]:
    """The renderings of `folder` in the order of their codes, without flags, skin tones and components.

    Raises FileNotFoundError, with what to do, where the folder doesn't hold both packages.
    """
    for part in (PICTURES, NAMES / "data.json"):
        if not (folder / part).exists():
            wanted = "npm install @lobehub/fluent-emoji-3d@1.1.0 emojibase-data@17.0.0"
            raise FileNotFoundError(f"{folder}: there is no {part}; run this in that folder: {wanted}")
    files: dict[str, Path] = {}
    for path in sorted((folder / PICTURES).glob("*.webp")):
        files.setdefault(_code(path.stem), path)
    found = {_code(entry["hexcode"]): entry for entry in _entries(folder)}
    groups, subgroups = _messages(folder)
    return [
        Rendering(files[code], entry["label"].lower(), groups[entry["group"]], subgroups[entry["subgroup"]])
        for code, entry in sorted(found.items())
        if code in files
    ]


def held_out(names: Sequence[str], count: int = HELD_OUT) -> frozenset[str]:
    """`count` names whose words all stay in at least two other names of the training; fewer where there are fewer.

    They are gone through in the order of the SHA-256 of their UTF-8 bytes, so that the choice is fixed and nobody's.
    """
    used = Counter(word for name in names for word in set(words(name)))
    held: set[str] = set()
    for name in sorted(set(names), key=lambda text: hashlib.sha256(text.encode()).hexdigest()):
        own = set(words(name))
        if len(held) < count and len(own) > 1 and all(used[word] > 2 for word in own):
            held.add(name)
            used.subtract(own)
    return frozenset(held)


def _code(text: str) -> str:
    return "-".join(part for part in text.lower().split("-") if part != _TWICE_SAID)


def _entries(folder: Path) -> Iterator[dict[str, Any]]:
    entries = json.loads((folder / NAMES / "data.json").read_text(encoding="utf-8"))
    return (entry for entry in entries if entry.get("group") not in (None, _COMPONENTS, _FLAGS))


def _messages(folder: Path) -> tuple[dict[int, str], dict[int, str]]:
    """Group and subgroup names by emojibase's numbers."""
    messages = json.loads((folder / NAMES / "messages.json").read_text(encoding="utf-8"))
    groups, subgroups = (
        {entry["order"]: entry["message"] for entry in messages[kind]} for kind in ("groups", "subgroups")
    )
    return groups, subgroups
