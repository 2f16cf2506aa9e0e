"""Start values that a user set in ui-config.json under the labels of earlier versions, which began with "ASAG".

A host keeps the start value of each component under the script's file and the component's label
(modules/ui_loadsave.py: UiLoadsave.add_component). The host writes the values found here under today's labels when
components start with them; from then on it reads those itself. Nothing is written here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from asag.settings import options, read_settings

KEY = "customscript/asag.py/{tab}/ASAG {label}/value"


def start_values(ui_config: Path, is_img2img: bool) -> dict[str, Any]:
    """The settings, by name, whose start values stand in the file under earlier labels and are allowed."""
    try:
        kept = json.loads(ui_config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # there is none yet, or the host says that it can't be read
    tab = "img2img" if is_img2img else "txt2img"
    keys = {name: KEY.format(tab=tab, label=option.label.lower()) for name, (_, option) in options().items()}
    found = {name: kept[key] for name, key in keys.items() if isinstance(kept, dict) and key in kept}
    return read_settings(found)[0]
