"""Extensions that a perturbed pass would confuse, found among a WebUI's always-on scripts.

Regional Prompter (scripts/attention.py: hook_forward) tells conditional from unconditional passes by counting its
layers' calls; Tiled Diffusion's region control (tile_methods/abstractdiffusion.py: custom_bboxes) takes each region's
prompt from the order of calls. One more pass would give them the wrong prompts from then on. Tiled Diffusion's plain
grid has no such state.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def conflict(scripts: Iterable[Any]) -> str | None:
    """The name of an active extension that ASAG can't run beside; None when there is none."""
    for script in scripts:
        title = (script.title() or "").strip().lower()
        if title == "regional prompter" and getattr(script, "active", False):
            return "Regional Prompter"
        if title == "tiled diffusion" and getattr(getattr(script, "delegate", None), "custom_bboxes", None):
            return "Tiled Diffusion's region control"
    return None
