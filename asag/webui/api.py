"""Script arguments, from the user interface or the WebUI's API, to settings; and their JSON schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asag import __version__
from asag.kernel_choice import KERNELS
from asag.option import Option
from asag.settings import AsagSettings, SettingsError, current_names, options

# The script's, by which requests and other extensions name it.
TITLE = "ASAG"


def read_args(args: Sequence[Any]) -> AsagSettings:
    """Settings from a script's arguments: positional in the user interface's order, or one JSON object anywhere.

    With an object only the object counts: what follows it is the host's filling up with defaults. A switch before it
    is the object's `enabled`, unless it has one.

    Raises:
        SettingsError: listing every problem.
    """
    names = list(options())
    objects = [value for value in args if isinstance(value, Mapping)]
    if len(objects) > 1:
        raise SettingsError([f"args: {len(objects)} objects; allowed: one object, or values in this order: {names}"])
    if objects:
        switch = {"enabled": args[0]} if isinstance(args[0], bool) else {}
        return AsagSettings.from_mapping({**switch, **current_names(objects[0])})
    if len(args) > len(names):
        raise SettingsError([f"args: {len(args)} values; allowed: at most {len(names)}, in this order: {names}"])
    return AsagSettings.from_mapping(dict(zip(names, args, strict=False)))


def changed_args(args: Sequence[Any], changes: Mapping[str, Any]) -> list[Any]:
    """A script's arguments with single settings replaced: in the object, if there is one, otherwise by position."""
    changed = list(args)
    for place, value in enumerate(args):
        if isinstance(value, Mapping):
            changed[place] = {**current_names(value), **changes}
            return changed
    values = {name: field.default for name, (field, _) in options().items()}
    values |= {**dict(zip(values, args, strict=False)), **changes}
    return [*values.values(), *changed[len(values) :]]


def schema() -> dict[str, Any]:
    """The settings as a JSON schema (draft 2020-12), with a comment on what computes them on a GPU."""
    properties = {name: _property(field.default, option) for name, (field, option) in options().items()}
    for name, (_, option) in options().items():
        properties |= {earlier: _earlier(name, option) for earlier in option.earlier_names}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": f"Attention on a GPU is computed by: {KERNELS.in_use()}",
        "title": "ASAG settings",
        "version": __version__,
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _property(default: Any, option: Option) -> dict[str, Any]:
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string"}
    found = {"type": kinds[type(default)], "title": option.label, "description": option.help, "default": default}
    if option.minimum is not None:
        found |= {"minimum": option.minimum, "maximum": option.maximum}
    if option.noise:
        found["type"] = ["number", "string"]
    if option.choices:
        found["enum"] = list(option.choices)
    return found


def _earlier(name: str, option: Option) -> dict[str, Any]:
    """The property for an earlier name, which is still read."""
    values = ", ".join(f"{old} is {new}" for old, new in option.earlier_values.items())
    described = f"The earlier name of {name}: {values}. Give one of the two."
    return {"type": "boolean", "title": option.label, "description": described, "deprecated": True}
