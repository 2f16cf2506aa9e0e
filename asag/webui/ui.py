"""The accordion in txt2img and img2img, derived from the settings' metadata. Works in gradio 3.41 and 4.40."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from modules.ui_components import InputAccordion

from asag.settings import Option, options


def build(elem_id: Callable[[str], str]) -> dict[str, Any]:
    """Build the accordion; a component for each setting, in the order in which the script's arguments come."""
    components: dict[str, Any] = {}
    with InputAccordion(False, label="ASAG", elem_id=elem_id("enabled")) as components["enabled"]:
        for name, (field, option) in options().items():
            if name != "enabled":
                components[name] = _component(option, field.default, elem_id(name))
    return components


def _component(option: Option, default: Any, elem_id: str) -> Any:
    # Labels are keys of ui-config.json, where other extensions have a "Scale" too.
    label = f"ASAG {option.label.lower()}"
    if option.choices:
        return gr.Dropdown(list(option.choices), value=default, label=label, info=option.help, elem_id=elem_id)
    if isinstance(default, bool):
        return gr.Checkbox(value=default, label=label, info=option.help, elem_id=elem_id)
    if isinstance(default, str):
        return gr.Textbox(value=default, label=label, info=option.help, max_lines=1, elem_id=elem_id)
    return gr.Slider(
        option.minimum,
        option.slider_maximum or option.maximum,
        value=default,
        step=option.step,
        label=label,
        info=option.help,
        elem_id=elem_id,
    )
