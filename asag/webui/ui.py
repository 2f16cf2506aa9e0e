"""The accordion in txt2img and img2img, derived from the settings' metadata. Works in gradio 3.41 and 4.40.

Imports nothing of a host: what makes an accordion with a switch is given, so that the playground can show the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from asag.option import Option
from asag.presets import Presets
from asag.settings import options
from asag.webui.preset_panel import PresetPanel

ElemId = Callable[[str], str]
# Pixels; narrower, a slider's help becomes a column of single words, so the row wraps.
NARROWEST = 250


@dataclass(frozen=True)
class Accordion:
    """What was built: a component for each setting, in the order in which the script's arguments come; and what is no
    argument: the list of presets, and the place of what is to be said of a pasted text, a gr.HTML."""

    settings: dict[str, Any]
    preset: Any
    notice: Any


def build(
    elem_id: ElemId, input_accordion: Callable[..., Any], presets: Presets, blocks_route: str = "asag/blocks"
) -> Accordion:
    """Build the accordion. `input_accordion` is the host's InputAccordion (modules/ui_components.py); `blocks_route` is
    what the block map asks."""
    found: dict[str, Any] = {}
    panel = PresetPanel(presets, elem_id)
    with input_accordion(False, label="ASAG", elem_id=elem_id("enabled")) as found["enabled"]:
        groups: dict[str, list[str]] = {}
        for name, (_, option) in options().items():
            groups.setdefault(option.group, []).append(name)
        with gr.Row(elem_classes=["asag-first"]):
            _build(groups.pop(""), elem_id, found)
            panel.build_list()
        notice = gr.HTML("", elem_id=elem_id("notice"))
        with gr.Accordion("Advanced", open=False, elem_id=elem_id("advanced")):
            for group, names in groups.items():
                _build_group(group, names, elem_id, found, blocks_route)
            panel.build_manager()
    in_order = {name: found[name] for name in options()}
    held = {name: each for name, each in in_order.items() if name != "enabled" and options()[name][1].changes_picture}
    panel.connect(in_order["enabled"], held)
    return Accordion(in_order, panel.list, notice)


def names() -> list[str]:
    """The settings in the order of the components and of the script's arguments."""
    return list(options())


def _build_group(group: str, names: list[str], elem_id: ElemId, found: dict[str, Any], blocks_route: str) -> None:
    with gr.Group(elem_classes=["asag-group"]):
        gr.HTML(f"<h4>{group}</h4>", elem_classes=["asag-heading"])
        if "blocks" in names:
            _build(["blocks"], elem_id, found)
            place = f'<div class="asag-map" data-field="{elem_id("blocks")}" data-route="{blocks_route}"></div>'
            gr.HTML(place, elem_id=elem_id("map"))
        with gr.Row():
            _build(names, elem_id, found)


def _build(names: list[str], elem_id: ElemId, found: dict[str, Any]) -> None:
    """Build the components of these settings that aren't there yet."""
    for name in names:
        if name not in found:
            field, option = options()[name]
            found[name] = component(option, field.default, elem_id(name))


def component(option: Option, default: Any, elem_id: str) -> Any:
    """The gradio component of one setting."""
    # Labels are keys of ui-config.json, where other extensions have a "Scale" too.
    common = {
        "value": default,
        "label": f"ASAG {option.label.lower()}",
        "info": option.help,
        "elem_id": elem_id,
        "min_width": NARROWEST,
    }
    if option.choices:
        return gr.Dropdown(list(option.choices), **common)
    if isinstance(default, bool):
        return gr.Checkbox(**common)
    if isinstance(default, str):
        return gr.Textbox(max_lines=1, **common)
    return gr.Slider(option.minimum, option.slider_maximum or option.maximum, step=option.step, **common)
