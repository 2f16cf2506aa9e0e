"""The accordion in txt2img and img2img, derived from the settings' metadata. Works in gradio 3.41 and 4.40.

Imports nothing of a host: what makes an accordion with a switch is given, so that the playground can show the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from asag.option import Option
from asag.preset_uses import Model
from asag.presets import Presets
from asag.settings import AsagSettings, options
from asag.webui import about
from asag.webui.preset_panel import PresetPanel

ElemId = Callable[[str], str]
# Pixels; narrower, a slider's help becomes a column of single words, so the row wraps.
NARROWEST = 250


@dataclass(frozen=True)
class Accordion:
    """What was built: a component for each setting, in the order in which the script's arguments come; and what is no
    argument: the list of presets, the place of what is to be said of a pasted text, and that of the block map, both
    a gr.HTML."""

    settings: dict[str, Any]
    preset: Any
    notice: Any
    map: Any


class _Fields:
    """Builds components of settings, and knows those that it has built, and the block map."""

    def __init__(self, elem_id: ElemId, start: Mapping[str, Any], left_out: Collection[str], blocks_route: str) -> None:
        self.elem_id, self.start, self.left_out, self.blocks_route = elem_id, start, left_out, blocks_route
        self.built: dict[str, Any] = {}
        self.map: Any = None

    def section(self, group: str, names: list[str]) -> None:
        """A part of the accordion that folds. That of the blocks has the map, and is open."""
        shown = any(name not in self.left_out for name in names)
        elem_id = self.elem_id(f"section_{group.lower().replace(' ', '_')}")
        with gr.Accordion(group, open="blocks" in names, visible=shown, elem_id=elem_id):
            with gr.Row():
                # A choice first: it decides what the rest means.
                for name in sorted(names, key=lambda name: not options()[name][1].choices):
                    self.build(name)
            if "blocks" in names:
                place = map_place(self.elem_id("blocks"), self.blocks_route)
                self.map = gr.HTML(place, elem_id=self.elem_id("map"))

    def build(self, name: str) -> None:
        field, option = options()[name]
        value = self.start.get(name, field.default)
        self.built[name] = component(option, value, self.elem_id(name), name not in self.left_out)

    def rules(self) -> dict[str, dict[str, Any]]:
        """What the page's script has to know, by elem_id: where a slider ends that has a field for more, what it is in
        each unit of the scale, and with which methods a field is shown."""
        found: dict[str, dict[str, Any]] = {}
        for name, (_, option) in options().items():
            rule: dict[str, Any] = {}
            if option.slider_maximum is not None:
                rule["slider_maximum"] = option.slider_maximum
            if option.units:
                units = {unit: each._asdict() for unit, each in option.units.items()}
                rule |= {"unit": self.elem_id("unit"), "units": units}
            if option.methods:
                rule |= {"of": self.elem_id("method"), "methods": option.methods}
            if rule:
                found[self.elem_id(name)] = rule
        return found


def build(
    elem_id: ElemId,
    input_accordion: Callable[..., Any],
    presets: Presets,
    blocks_route: str = "asag/blocks",
    start: Mapping[str, Any] | None = None,
    left_out: Collection[str] = (),
    model: Callable[[], Model] = Model,
) -> Accordion:
    """Build the accordion. `input_accordion` is the host's InputAccordion (modules/ui_components.py); `blocks_route` is
    what the block map asks; `start` are values of settings to begin with, the rest at their defaults; `left_out` are
    settings that are built, since they are arguments, but not shown; `model` says which model runs next."""
    start = start or {}
    fields = _Fields(elem_id, start, left_out, blocks_route)
    panel = PresetPanel(presets, elem_id, model)
    groups: dict[str, list[str]] = {}
    for name, (_, option) in options().items():
        groups.setdefault(option.group, []).append(name)
    with input_accordion(False, label="ASAG", elem_id=elem_id("enabled")) as fields.built["enabled"]:
        gr.HTML(about.line(fields.rules()), elem_id=elem_id("about"))
        with gr.Row(elem_classes=["asag-first"]):
            for name in groups.pop(""):
                if name != "enabled":
                    fields.build(name)
            panel.build_list(AsagSettings(**start))
        notice = gr.HTML("", elem_id=elem_id("notice"))
        with gr.Accordion("Advanced", open=False, elem_id=elem_id("advanced")):
            for group, names in groups.items():
                fields.section(group, names)
            panel.build_manager()
    in_order = {name: fields.built[name] for name in options()}
    held = {name: each for name, each in in_order.items() if name != "enabled" and options()[name][1].changes_picture}
    panel.connect(in_order["enabled"], held)
    return Accordion(in_order, panel.list, notice, fields.map)


def map_place(field: str, route: str) -> str:
    """Where javascript/asag.js draws the map of the list in the component `field`; it asks `route`."""
    return f'<div class="asag-map" data-field="{field}" data-route="{route}"></div>'


def names() -> list[str]:
    """The settings in the order of the components and of the script's arguments."""
    return list(options())


def component(option: Option, value: Any, elem_id: str, visible: bool = True) -> Any:
    """The gradio component of one setting."""
    common = {
        "value": option.shown(value),
        "label": option.label,
        "info": option.help,
        "elem_id": elem_id,
        "min_width": NARROWEST,
        "visible": visible,
    }
    if option.choices:
        return gr.Dropdown(list(option.choices), **common)
    if isinstance(value, bool):
        return gr.Checkbox(**common, elem_classes=["asag-checkbox"])
    if isinstance(value, str) or option.noise:
        return gr.Textbox(max_lines=1, **common)
    # The slider itself ends earlier where the page's script is: the field takes all that is allowed.
    return gr.Slider(option.minimum, option.maximum, step=option.step, **common)
