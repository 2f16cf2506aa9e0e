"""The labels of earlier versions: of start values in ui-config.json, and of axes in X/Y/Z plots.

A host keeps the start value of each component under the script's file and the component's label
(modules/ui_loadsave.py: UiLoadsave.add_component). Labels began with "ASAG" at first; some settings had other names.
The host writes the values found here under today's labels when components start with them; from then on it reads those
itself. Nothing is written here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from asag.settings import options, read_settings

KEY = "customscript/asag.py/{tab}/{label}/value"


def start_values(ui_config: Path, is_img2img: bool) -> dict[str, Any]:
    """The settings, by name, whose start values stand in the file under earlier labels and are allowed."""
    try:
        kept = json.loads(ui_config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # there is none yet, or the host says that it can't be read
    tab = "img2img" if is_img2img else "txt2img"
    found = {}
    for name, (_, option) in options().items():
        labels = [each.replace("_", " ") for each in option.earlier_names]
        # The latest comes last, and holds.
        keys = [f"ASAG {label}" for label in [option.label.lower(), *labels]] + [each.capitalize() for each in labels]
        for key in (KEY.format(tab=tab, label=label) for label in keys):
            if isinstance(kept, dict) and key in kept:
                found[name] = kept[key]
    return read_settings(found)[0]


def axes() -> list[tuple[str, str, tuple[str, ...]]]:
    """For each earlier label of an axis: the setting that it is of today, the label, and the values it had."""
    return [
        (name, earlier.capitalize(), tuple(value.capitalize() for value in option.earlier_values))
        for name, (_, option) in options().items()
        for earlier in option.earlier_names
    ]
