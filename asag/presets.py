"""The presets that come with ASAG, and those that users keep in a file of their own.

A preset is a mapping of settings' names to values; what it doesn't name is at its default. `auto` and `late` make it
fit every model family.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asag.echo import shown, shown_names
from asag.preset_file import PresetError, PresetFile
from asag.preset_uses import ANY, KEY, uses_in, with_uses
from asag.settings import AsagSettings, SettingsError, options

# Gentle and Strong: in unit cfg, since the same scale of the paper's unit changes nothing in one small model and burns
# the other (research/asag).
# Fast: three fifths of the steps, the early ones, which decide the picture's structure, computed in every second, which
# 500 pictures of each small model don't tell from every one (research/asag); and a block after the middle.
# Clean: ASAG's best on the small MMDiT, better than PAG and SEG there without captions, on noise that its search hadn't
# seen (research/asag).
PRESETS: dict[str, dict[str, Any]] = {
    "Paper": {"scale": 1.5},
    "Gentle": {"scale": 0.1, "unit": "cfg"},
    "Strong": {"scale": 0.5, "unit": "cfg"},
    "Clean": {"scale": 0.6, "blocks": "late", "strength": 0.25, "contrast": 0.0},
    "Fast": {"blocks": "late", "end": 0.6, "every": 2},
}
LONGEST_NAME = 60
# How many unusable entries of the file a notice names.
MOST_NAMED = 4
# Stands for settings that are no preset's.
CUSTOM = "Custom"


def compact(settings: AsagSettings) -> dict[str, Any]:
    """What a preset holds of settings: everything but the switch that differs from its default, and the scale."""
    found = {}
    for name, (field, option) in options().items():
        value = getattr(settings, name)
        if option.changes_picture and name != "enabled" and (name == "scale" or value != field.default):
            found[name] = value
    return found


def complete(preset: Mapping[str, Any]) -> AsagSettings:
    """The settings of a preset; raises SettingsError as AsagSettings.from_mapping does."""
    return AsagSettings.from_mapping(preset)


class Presets:
    """The built-in presets and those in `path`, a JSON object of name to preset, and which models they are kept for.

    The file is read anew for every question, since other tabs, and people, write to it. Entries that can't be used
    stay in it as they stand. `notice` names them, as of the last question, and says so if the whole file was moved
    aside (PresetFile).
    """

    def __init__(self, path: Path) -> None:
        self.file = PresetFile(path)
        self.unusable: dict[str, str] = {}

    @property
    def notice(self) -> str:
        if not self.unusable:
            return self.file.notice
        named = [f"{shown(name)} ({reason})" for name, reason in self.unusable.items()]
        more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
        entries = f"{self.file.path.name} keeps presets that can't be used: {', '.join(named[:MOST_NAMED])}{more}."
        return f"{self.file.notice} {entries}".strip()

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

        def put(found: dict[str, Any]) -> dict[str, Any]:
            _check_usable(name, found)
            return {**found, name: compact(settings)}

        self.file.change(put)
        return name

    def rename(self, name: str, new: str) -> str:
        """Give the user's own preset another name that is free; returns the new one, trimmed."""
        new = _checked(new)

        def put(found: dict[str, Any]) -> dict[str, Any]:
            _check_own(name, found)
            _check_usable(new, found)
            if new in found and new != name:
                raise PresetError(f"name: {new!r} is taken; allowed: a name that no preset has")
            renamed = {new if each == name else each: preset for each, preset in found.items()}
            return with_uses(renamed, {new if each == name else each: use for each, use in uses_in(found).items()})

        self.file.change(put)
        return new

    def delete(self, name: str) -> None:
        def take(found: dict[str, Any]) -> dict[str, Any]:
            _check_own(name, found)
            left = {each: preset for each, preset in found.items() if each != name}
            return with_uses(left, {each: use for each, use in uses_in(found).items() if each != name})

        self.file.change(take)

    def uses(self) -> dict[str, str]:
        """The kind of model or the checkpoint that a preset is kept for, by the preset's name."""
        return uses_in(self.file.read())

    def keep_for(self, name: str, use: str) -> None:
        """Keep a preset, also one of ASAG's, for a kind of model, a checkpoint or ANY; raises PresetError when there is
        none of that name."""

        def put(found: dict[str, Any]) -> dict[str, Any]:
            known = [*PRESETS, *_sorted(found)[0]]
            if name not in known:
                raise PresetError(f"preset: {shown(name)}; allowed: {shown_names(known)}")
            if not isinstance(found.get(KEY, {}), dict):
                raise PresetError(f"{KEY!r} in the file: {shown(found[KEY])}; allowed: an object of presets and models")
            others = {each: kept for each, kept in uses_in(found).items() if each != name}
            return with_uses(found, others if use == ANY else {**others, name: use})

        self.file.change(put)

    def _own(self) -> dict[str, dict[str, Any]]:
        own, self.unusable = _sorted(self.file.read())
        return own


def _sorted(found: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The entries that can be used, and why each of the others can't."""
    reasons = {
        name: _why_unusable(name, preset)
        for name, preset in found.items()
        if name != KEY or not isinstance(preset, dict)
    }
    usable = {name: found[name] for name, reason in reasons.items() if reason is None}
    return usable, {name: reason for name, reason in reasons.items() if reason is not None}


def _why_unusable(name: str, preset: Any) -> str | None:
    if not isinstance(preset, dict):
        return f"{shown(preset)}; allowed: an object of settings"
    try:
        _checked(name)
        complete(preset)
    except PresetError as error:
        return _printable(str(error))
    except SettingsError as error:
        return _printable("; ".join(error.problems))
    return None


def _printable(text: str) -> str:
    """Without what UTF-8, and so a page, can't hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def _check_own(name: str, found: Mapping[str, Any]) -> None:
    own = _sorted(found)[0]
    if name not in own:
        allowed = shown_names(list(own)) or "there are none yet"
        raise PresetError(f"preset: {shown(name)}; allowed: your own presets: {allowed}")


def _check_usable(name: str, found: Mapping[str, Any]) -> None:
    """Raise PresetError rather than write over what can't be read."""
    if name in _sorted(found)[1]:
        raise PresetError(f"name: {name!r} is a preset in the file that can't be used; allowed: another name")


def _checked(name: str) -> str:
    name = " ".join(str(name).split())
    if not name or len(name) > LONGEST_NAME or ":" in name or _printable(name) != name:
        raise PresetError(f"name: {shown(name)}; allowed: 1 to {LONGEST_NAME} characters without a colon")
    if name in PRESETS or name == CUSTOM:
        raise PresetError(f"name: {name!r} comes with ASAG; allowed: another name")
    return name


def write_shared(name: str, settings: AsagSettings) -> str:
    """A preset in one line of text, to hand to others: "Fast: scale 1.5; blocks late; end 0.6; every 2"."""
    return f"{name}: " + "; ".join(f"{key} {value}" for key, value in compact(settings).items())


def read_shared(text: str) -> tuple[str, AsagSettings]:
    """The name and settings in such a line; raises PresetError or SettingsError saying what is wrong."""
    name, colon, rest = text.strip().partition(":")
    if not colon or not rest.strip():
        raise PresetError(f"text: {shown(text)}; allowed: a line such as 'My preset: scale 2.0; blocks mid'")
    pairs = [part.strip().partition(" ") for part in rest.split(";") if part.strip()]
    return name.strip(), AsagSettings.from_mapping({key: value.strip() for key, _, value in pairs})
