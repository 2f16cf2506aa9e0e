"""Script arguments, from the user interface or the WebUI's API, to settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asag.settings import AsagSettings, SettingsError, options


def read_args(args: Sequence[Any]) -> AsagSettings:
    """Settings from a script's arguments: positional in the user interface's order, or one JSON object anywhere.

    With an object only the object counts: what stands beside it is the host's filling up with defaults.

    Raises:
        SettingsError: listing every problem.
    """
    names = list(options())
    objects = [value for value in args if isinstance(value, Mapping)]
    if len(objects) > 1:
        raise SettingsError([f"args: {len(objects)} objects; allowed: one object, or values in this order: {names}"])
    if objects:
        return AsagSettings.from_mapping(objects[0])
    if len(args) > len(names):
        raise SettingsError([f"args: {len(args)} values; allowed: at most {len(names)}, in this order: {names}"])
    return AsagSettings.from_mapping(dict(zip(names, args, strict=False)))
