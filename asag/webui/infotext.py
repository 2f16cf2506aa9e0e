"""The settings as one infotext value, and back: "scale 1.5; blocks mid; iterations 3".

Written compactly: the scale and what differs from its default. Semicolons separate, so that block lists keep their
commas.

A host's API gives a pasted text to `pasted_value` alone: what can't be read ends the request (modules/api/api.py:
apply_infotext). The page calls `on_infotext_pasted` first (modules/infotext_utils.py: connect_paste): there what can be
read is taken, and `pasted_problems` tells what can't.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from asag.echo import shown
from asag.hosts.refused import Refused
from asag.preset_file import PresetError
from asag.presets import CUSTOM, Presets, compact
from asag.settings import AsagSettings, SettingsError, options, read_settings

KEY = "ASAG"
# What on_infotext_pasted leaves among the parameters; the answer of the route png-info shows it, too.
PROBLEMS_KEY = "ASAG problems"
# Twice what all settings take, with lists of blocks as long as they may be.
LONGEST_TEXT = 10_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pasted:
    """What an infotext says of ASAG: the settings that it names and that can be read, by name, `enabled` among them if
    it says anything of ASAG; and a line for each name and value that can't be read."""

    given: dict[str, Any]
    problems: list[str]

    @property
    def settings(self) -> AsagSettings:
        """What isn't given is at its default."""
        return AsagSettings(**self.given)

    def value(self, name: str) -> Any:
        """What pasting sets the option `name` to; None leaves it alone: what can't be read, and everything but the
        switch where the text says nothing of ASAG."""
        if any(problem.startswith(f"{name}:") for problem in self.problems):
            return None
        settings = self.settings
        shown = options()[name][1].shown(getattr(settings, name))
        return shown if settings.enabled or name == "enabled" else None


def write(settings: AsagSettings) -> str:
    """The value for the infotext key; numbers are written so that reading gives the same number back."""
    return "; ".join(f"{name} {value}" for name, value in compact(settings).items())


def read_what_can_be(parameters: Mapping[str, Any]) -> Pasted:
    """What parsed infotext parameters say of ASAG."""
    text = parameters.get(KEY)
    if not text:
        return Pasted({}, [])
    text = str(text)
    if len(text) > LONGEST_TEXT:
        return Pasted({}, [f"{KEY}: {shown(text)}; allowed: text of at most {LONGEST_TEXT} characters"])
    pairs = [part.strip().partition(" ") for part in text.split(";") if part.strip()]
    return Pasted(*read_settings({"enabled": True, **{name: value.strip() for name, _, value in pairs}}))


def read(parameters: Mapping[str, Any]) -> AsagSettings:
    """The settings that parsed infotext parameters hold; switched off when they hold none.

    Raises:
        SettingsError: when something of the value can't be read.
    """
    pasted = read_what_can_be(parameters)
    if pasted.problems:
        raise SettingsError(pasted.problems)
    return pasted.settings


def on_infotext_pasted(text: str, parameters: MutableMapping[str, Any]) -> None:
    """The host's callback of that name: notes among the parameters what can't be read, so that the rest is taken."""
    problems = read_what_can_be(parameters).problems
    if problems:
        parameters[PROBLEMS_KEY] = "; ".join(problems)


def pasted_problems(parameters: Mapping[str, Any]) -> str:
    """What the page tells of a pasted text; empty when all of it was read."""
    problems = parameters.get(PROBLEMS_KEY)
    return f"ASAG: some settings in the pasted text can't be read. The others are used. {problems}" if problems else ""


def pasted_preset(parameters: Mapping[str, Any], presets: Presets) -> str | None:
    """What pasting sets the list of presets to, so that it doesn't claim what no longer holds; None leaves it alone."""
    pasted = read_what_can_be(parameters)
    if not pasted.settings.enabled:
        return None
    if pasted.problems:
        return CUSTOM
    try:
        return presets.name_of(pasted.settings) or CUSTOM
    except (SettingsError, PresetError):
        return None


def pasted_value(parameters: Mapping[str, Any], name: str) -> Any:
    """What pasting sets the option `name` to; None leaves it alone, as those that don't change the picture always are.

    A text without ASAG switches it off and leaves the other options alone.

    Raises:
        Refused: in the API, when something of the value can't be read.
    """
    if not options()[name][1].changes_picture:
        return None
    pasted = read_what_can_be(parameters)
    if pasted.problems and PROBLEMS_KEY not in parameters:
        message = f"ASAG: the infotext can't be read: {'; '.join(pasted.problems)}"
        logger.warning(message)
        raise Refused(message, 422)
    return pasted.value(name)
