"""Axes of the X/Y/Z plot, derived from the settings: one for each that changes the picture, but for the switch; and at
the end one for each earlier label, which plots of before name.

An axis writes into the script's arguments, in the cell's own `p`: other extensions hand those to other machines, and
nothing else of `p` that ASAG could keep. A setting on an axis also switches ASAG on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from asag.hosts.refused import Refused
from asag.settings import AsagSettings, SettingsError, options
from asag.webui import api, earlier_labels

PREFIX = "[ASAG] "
# The settings that axes have set on a cell.
ATTRIBUTE = "_asag_axes"

logger = logging.getLogger(__name__)


def add_axes(xyz_grid: Any) -> None:
    """Add the axes to the host's xyz_grid module; those that are there already stay."""
    present = {axis.label for axis in xyz_grid.axis_options}
    for name, (field, option) in options().items():
        label = PREFIX + option.label
        if name != "enabled" and option.changes_picture and label not in present:
            xyz_grid.axis_options.append(_axis(xyz_grid, name, type(field.default), label, option.choices))
            if option.noise:
                # The host reads ranges such as 0-0.5 [3] for numbers alone.
                xyz_grid.axis_options.append(_axis(xyz_grid, name, str, f"{label} (noise)", option.choices))
    for name, label, choices in earlier_labels.axes():
        if PREFIX + label not in present:
            xyz_grid.axis_options.append(_axis(xyz_grid, name, str, PREFIX + label, choices))


def _axis(xyz_grid: Any, name: str, kind: type, label: str, choices: Sequence[str]) -> Any:
    choices = ("True", "False") if kind is bool else choices
    return xyz_grid.AxisOption(
        label,
        str if kind is bool else kind,
        _apply(name),
        confirm=_confirm(name),
        choices=(lambda: list(choices)) if choices else None,
    )


def _apply(name: str) -> Callable[[Any, Any, Sequence[Any]], None]:
    def apply(p: Any, value: Any, values: Sequence[Any]) -> None:
        before = getattr(p, ATTRIBUTE, {})
        if name in before:
            # Start and Start (noise), or one axis twice: each cell would be of the last, and labelled with both.
            problem = f"{name}: {value} on one axis and {before[name]} on another; allowed: one axis of a setting"
            logger.warning(problem)
            raise Refused(f"ASAG settings: {problem}", 422)
        # A new dict and new arguments: cells are shallow copies of one another.
        setattr(p, ATTRIBUTE, {**before, name: value})
        _set_arguments(p, {"enabled": True, name: value})

    return apply


def _set_arguments(p: Any, changes: dict[str, Any]) -> None:
    """Replace settings in the script's part of a request's arguments (modules/scripts.py: ScriptRunner)."""
    script = next(each for each in p.scripts.alwayson_scripts if each.title() == api.TITLE)
    args = list(p.script_args)
    args[script.args_from : script.args_to] = api.changed_args(args[script.args_from : script.args_to], changes)
    p.script_args = tuple(args)


def _confirm(name: str) -> Callable[[Any, Sequence[Any]], None]:
    def confirm(p: Any, values: Sequence[Any]) -> None:
        try:
            for value in values:
                AsagSettings.from_mapping({name: value})
        except SettingsError as error:
            logger.warning(str(error))
            raise Refused(str(error), 422) from None

    return confirm
