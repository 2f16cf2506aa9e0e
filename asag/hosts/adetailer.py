"""ADetailer's inpainting, which ASAG guides only if ADetailer runs its script there.

Source: scripts/!adetailer.py (script_filter): of the always-on scripts its inpainting runs those whose files are named
in a setting. In `process` it notes its detectors among the parameters of the picture.
"""

from __future__ import annotations

import sys
from typing import Any

NAME = "asag"
NOTE = "ASAG doesn't guide ADetailer's inpainting: add asag to ADetailer's setting (Script names to apply to ADetailer)"


def unguided_inpainting(p: Any) -> str:
    """A note when ADetailer is on for `p` and will not run ASAG's script; else nothing."""
    if not any(name.startswith("ADetailer model") for name in p.extra_generation_params):
        return ""
    options = getattr(sys.modules.get("modules.shared"), "opts", None)
    settings: dict[str, Any] = getattr(options, "data", {})
    names = [name.strip() for name in str(settings.get("ad_script_names", "")).split(",")]
    return NOTE if settings.get("ad_only_selected_scripts", True) and NAME not in names else ""
