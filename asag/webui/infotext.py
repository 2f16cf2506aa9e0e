"""The settings as one infotext value, and back: "scale 1.5; blocks mid; iterations 3".

Written compactly: the scale and what differs from its default. Semicolons separate, so that block lists keep their
commas.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from asag.presets import CUSTOM, PresetError, Presets
from asag.settings import AsagSettings, SettingsError, options

KEY = "ASAG"

logger = logging.getLogger(__name__)


def write(settings: AsagSettings) -> str:
    """The value for the infotext key; numbers are written so that reading gives the same number back."""
    parts = []
    for name, (field, option) in options().items():
        value = getattr(settings, name)
        if option.picture and name != "enabled" and (name == "scale" or value != field.default):
            parts.append(f"{name} {value}")
    return "; ".join(parts)


def read(parameters: Mapping[str, Any]) -> AsagSettings:
    """The settings that parsed infotext parameters hold; switched off when they hold none.

    Raises:
        SettingsError: when the value can't be read.
    """
    text = parameters.get(KEY)
    if not text:
        return AsagSettings()
    pairs = [part.strip().partition(" ") for part in str(text).split(";") if part.strip()]
    return AsagSettings.from_mapping({"enabled": True, **{name: value.strip() for name, _, value in pairs}})


def pasted_preset(parameters: Mapping[str, Any], presets: Presets) -> str | None:
    """What pasting sets the list of presets to, so that it doesn't claim what no longer holds; None leaves it alone."""
    try:
        settings = read(parameters)
        return (presets.name_of(settings) or CUSTOM) if settings.enabled else None
    except (SettingsError, PresetError):
        return None


def pasted_value(parameters: Mapping[str, Any], name: str) -> Any:
    """What pasting sets the option `name` to; None leaves it alone, as those that don't change the picture always are.

    A text without ASAG switches it off and leaves the other options alone; so does one that can't be read.
    """
    if not options()[name][1].picture:
        return None
    try:
        settings = read(parameters)
    except SettingsError as error:
        logger.warning("ASAG stays off: the pasted text can't be read. %s", error)
        settings = AsagSettings()
    if not settings.enabled and name != "enabled":
        return None
    return getattr(settings, name)
