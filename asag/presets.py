"""The presets that come with ASAG, and those that users keep in a file of their own.

A preset is a mapping of settings' names to values; what it doesn't name is at its default. `auto` and `late` make it
fit every model family.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from asag.echo import shown, shown_names
from asag.settings import AsagSettings, options

# Fast: three fifths of the steps, the early ones, which decide the picture's structure; and a block after the middle.
# Clean: ASAG's best on the small MMDiT, better than PAG and SEG there without captions, on noise that its search hadn't
# seen (research/asag).
PRESETS: dict[str, dict[str, Any]] = {
    "Paper": {"scale": 1.5},
    "Gentle": {"scale": 0.8},
    "Strong": {"scale": 4.0, "rescale": 0.2},
    "Clean": {"scale": 0.6, "blocks": "late", "strength": 0.25, "contrast": 0.0},
    "Fast": {"blocks": "late", "end": 0.6},
}
LONGEST_NAME = 60
# Stands for settings that are no preset's.
CUSTOM = "Custom"


class PresetError(ValueError):
    """What is asked of the presets can't be done; the message says why and what is allowed."""


def compact(settings: AsagSettings) -> dict[str, Any]:
    """What a preset holds of settings: everything but the switch that differs from its default, and the scale."""
    default = asdict(AsagSettings())
    return {
        name: value
        for name, value in asdict(settings).items()
        if options()[name][1].picture and name != "enabled" and (name == "scale" or value != default[name])
    }


def complete(preset: Mapping[str, Any]) -> AsagSettings:
    """The settings of a preset; raises SettingsError as AsagSettings.from_mapping does."""
    return AsagSettings.from_mapping(preset)


class Presets:
    """The built-in presets and those in `path`, a JSON object of name to preset.

    The file is read anew for every question, since other tabs, and people, write to it. One that can't be read is
    moved aside to a name ending in ".broken", and `notice` says so.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notice = ""

    def names(self) -> list[str]:
        return [*PRESETS, *self._own()]

    def get(self, name: str) -> AsagSettings:
        """Raises PresetError when there is none of that name."""
        own = self._own()
        if name not in PRESETS and name not in own:
            raise PresetError(f"preset: {shown(name)}; allowed: {shown_names([*PRESETS, *own])}")
        return complete(PRESETS.get(name) or own[name])

    def name_of(self, settings: AsagSettings) -> str | None:
        """The first preset with these settings; the switch and what no preset holds don't count."""
        wanted = compact(settings)
        everything = {**PRESETS, **self._own()}
        return next((name for name, preset in everything.items() if compact(complete(preset)) == wanted), None)

    def save(self, name: str, settings: AsagSettings) -> str:
        """Keep settings under a name, replacing the user's own preset of that name; returns the name, trimmed."""
        name = _checked(name)
        self._write({**self._own(), name: compact(settings)})
        return name

    def rename(self, name: str, new: str) -> str:
        """Give the user's own preset another name that is free; returns the new one, trimmed."""
        own, new = self._own(), _checked(new)
        self._check_own(name, own)
        if new in own and new != name:
            raise PresetError(f"name: {new!r} is taken; allowed: one that no preset has")
        self._write({new if each == name else each: preset for each, preset in own.items()})
        return new

    def delete(self, name: str) -> None:
        own = self._own()
        self._check_own(name, own)
        self._write({each: preset for each, preset in own.items() if each != name})

    def _check_own(self, name: str, own: Mapping[str, Any]) -> None:
        if name not in own:
            raise PresetError(
                f"preset: {shown(name)}; allowed: your own: {shown_names(list(own)) or 'there is none yet'}"
            )

    def _own(self) -> dict[str, dict[str, Any]]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            return self._put_aside(error)
        try:
            found = json.loads(text)
            if not isinstance(found, dict) or not all(isinstance(preset, dict) for preset in found.values()):
                raise ValueError("not an object of objects")
            for name, preset in found.items():
                complete(preset)
                _checked(name)
        except (ValueError, RecursionError) as error:
            return self._put_aside(error)
        return found

    def _put_aside(self, error: Exception) -> dict[str, dict[str, Any]]:
        aside = self.path.with_name(self.path.name + ".broken")
        number = 2
        while aside.exists():
            aside = self.path.with_name(f"{self.path.name}.broken{number}")
            number += 1
        told = f"The file of presets, {self.path.name}, can't be read ({error})"
        try:
            os.replace(self.path, aside)
        except OSError as second:
            raise PresetError(f"{told}, nor moved aside ({second.strerror})") from error
        self.notice = f"{told}; it is kept as {aside.name}."
        return {}

    def _write(self, own: Mapping[str, Any]) -> None:
        """Whole or not at all: into a file beside it that then takes its place."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.path.parent, prefix=self.path.name) as folder:
                written = Path(folder) / self.path.name
                written.write_text(json.dumps(own, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
                os.replace(written, self.path)
        except OSError as error:
            raise PresetError(f"The presets can't be written to {self.path.name}: {error.strerror}") from error


def _checked(name: str) -> str:
    name = " ".join(str(name).split())
    if not name or len(name) > LONGEST_NAME or ":" in name:
        raise PresetError(f"name: {shown(name)}; allowed: 1 to {LONGEST_NAME} characters without a colon")
    if name in PRESETS or name == CUSTOM:
        raise PresetError(f"name: {name!r} comes with ASAG; allowed: another name")
    return name


def write_shared(name: str, settings: AsagSettings) -> str:
    """A preset in one line of text, to hand to others: "Strong: scale 4.0; rescale 0.2"."""
    return f"{name}: " + "; ".join(f"{key} {value}" for key, value in compact(settings).items())


def read_shared(text: str) -> tuple[str, AsagSettings]:
    """The name and settings in such a line; raises PresetError or SettingsError saying what is wrong."""
    name, colon, rest = text.strip().partition(":")
    if not colon or not rest.strip():
        raise PresetError(f"text: {shown(text)}; allowed: a line such as 'My preset: scale 2.0; blocks mid'")
    pairs = [part.strip().partition(" ") for part in rest.split(";") if part.strip()]
    return name.strip(), AsagSettings.from_mapping({key: value.strip() for key, _, value in pairs})
