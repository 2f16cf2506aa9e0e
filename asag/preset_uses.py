"""Which models presets are kept for: a kind of model, such as SDXL, or one checkpoint. The list offers those first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

ANY = "any model"
# Where the file of presets keeps it: {name of a preset: kind or checkpoint}. No preset has a colon in its name, so that
# a version that doesn't know this leaves it as it stands.
KEY = ":use for"


@dataclass(frozen=True)
class Model:
    """The model that the next generation runs: its kind, as models/tensor_names.py calls it, and its checkpoint's name;
    each "" where it isn't known."""

    kind: str = ""
    checkpoint: str = ""

    @property
    def names(self) -> list[str]:
        """What a preset may be kept for, so that it suits this model; the closest first."""
        return [name for name in (self.checkpoint, self.kind) if name]


def uses_in(found: Mapping[str, Any]) -> dict[str, str]:
    """What presets are kept for, by their names, in the object of a file of presets."""
    kept = found.get(KEY)
    return {name: use for name, use in kept.items() if isinstance(use, str)} if isinstance(kept, dict) else {}


def with_uses(found: Mapping[str, Any], uses: Mapping[str, str]) -> dict[str, Any]:
    """The object of a file with other uses in it; without any it has no entry for them. An entry that can't be used
    stays."""
    if not isinstance(found.get(KEY, {}), dict):
        return dict(found)
    rest = {name: each for name, each in found.items() if name != KEY}
    return {**rest, KEY: dict(uses)} if uses else rest


def marked(name: str, use: str) -> str:
    """What the list calls a preset that is kept for the model that runs."""
    return f"★ {name} ({use})"


def offered(names: Iterable[str], uses: Mapping[str, str], model: Model) -> list[str]:
    """The list of presets as it stands for a model: first those that are kept for it, marked, then the others."""
    suited = [name for wanted in model.names for name in names if uses.get(name) == wanted]
    return [*(marked(name, uses[name]) for name in suited), *(name for name in names if name not in suited)]


def plain(text: str, names: Iterable[str], uses: Mapping[str, str]) -> str:
    """The name of the preset that a list of any moment calls so."""
    if text in names:
        return text
    return next((name for name in names if name in uses and marked(name, uses[name]) == text), text)
