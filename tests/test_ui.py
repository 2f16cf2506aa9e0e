"""The accordion on a double of gradio: a component for each setting, as its option says; and what the page is told."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asag.presets import Presets
from asag.settings import AsagSettings, options
from tests.gradio_double import Component, gradio


class InputAccordion(Component):
    """The double of the hosts' accordion with a switch."""


def elem_id(name: str) -> str:
    return f"id_{name}"


@pytest.fixture
def made() -> Iterator[list[Component]]:
    with gradio() as components:
        yield components


def build(tmp_path: Path, **more: Any) -> Any:
    from asag.webui import ui

    return ui.build(elem_id, InputAccordion, Presets(tmp_path / "presets.json"), **more)


def above(component: Component) -> list[str]:
    """The kinds and titles of what a component is inside of, the innermost first."""
    found = []
    while component.inside is not None:
        component = component.inside
        found.append(" ".join([component.kind, *map(str, component.args)]))
    return found


KINDS = {bool: "Checkbox", str: "Textbox", int: "Slider", float: "Slider"}


@pytest.mark.parametrize("start", [{}, {"scale": 2.5, "blocks": "mid", "reuse": False, "method": "seg", "end": 0.6}])
def test_every_setting_has_its_component_in_the_order_of_the_arguments(made: Any, tmp_path: Path, start: Any) -> None:
    from asag.webui import ui

    accordion = build(tmp_path, start=start)
    assert list(accordion.settings) == list(options()) == ui.names()
    switch = accordion.settings["enabled"]
    assert (switch.kind, switch.args, switch.given) == (
        "InputAccordion",
        (False,),
        {"label": "ASAG", "elem_id": "id_enabled"},
    )
    for name, (field, option) in options().items():
        if name == "enabled":
            continue
        component = accordion.settings[name]
        kind = "Dropdown" if option.choices else "Textbox" if option.noise else KINDS[type(field.default)]
        assert component.kind == kind
        expected = {"value": start.get(name, field.default), "label": option.label, "info": option.help}
        if option.noise:
            expected["value"] = {"start": "0", "end": "0.6" if start else "1"}[name]
        expected |= {"elem_id": f"id_{name}", "min_width": 250, "visible": True}
        args: tuple[Any, ...] = ()
        if component.kind == "Dropdown":
            args = (list(option.choices),)
        elif component.kind == "Checkbox":
            expected["elem_classes"] = ["asag-checkbox"]
        elif component.kind == "Textbox":
            expected["max_lines"] = 1
        else:
            args, expected["step"] = (option.minimum, option.maximum), option.step
        assert (component.args, component.given) == (args, expected)
    preset = AsagSettings(**start)
    assert accordion.preset.given["value"] == ("Custom" if start else "Paper")
    assert preset.scale == accordion.settings["scale"].given["value"]


def test_sections_fold_and_a_choice_comes_first_in_them(made: list[Component], tmp_path: Path) -> None:
    accordion = build(tmp_path)
    asag, advanced = "InputAccordion False", "Accordion Advanced"
    assert above(accordion.settings["scale"]) == above(accordion.preset) == ["Row", asag]
    assert accordion.settings["scale"].inside.given == {"elem_classes": ["asag-first"]}
    for name, (_, option) in options().items():
        if option.group:
            assert above(accordion.settings[name]) == ["Row", f"Accordion {option.group}", advanced, asag]
    folds = {each.args[0]: each.given for each in made if each.kind == "Accordion"}
    assert folds["Advanced"] == {"open": False, "elem_id": "id_advanced"}
    groups = list(dict.fromkeys(option.group for _, option in options().values() if option.group))
    assert list(folds) == ["Advanced", *groups, "Your presets"]
    for group in groups:
        ident = f"id_section_{group.lower().replace(' ', '_')}"
        assert folds[group] == {"open": group == "Blocks", "visible": True, "elem_id": ident}
    found = [each.given["label"] for each in made if above(each)[1:2] == ["Accordion Method"]]
    others = [option.label for _, option in options().values() if option.group == "Method" and not option.choices]
    assert found == ["Method", *others]
    assert above(accordion.notice) == [asag]
    assert (accordion.notice.args, accordion.notice.given) == (("",), {"elem_id": "id_notice"})


@pytest.mark.parametrize(("more", "route"), [({}, "asag/blocks"), ({"blocks_route": "asag/x/blocks"}, "asag/x/blocks")])
def test_the_map_is_beside_the_blocks_and_knows_whom_to_ask(made: Any, tmp_path: Path, more: Any, route: str) -> None:
    accordion = build(tmp_path, **more)
    assert above(accordion.map)[0] == "Accordion Blocks"
    assert accordion.map.args == (f'<div class="asag-map" data-field="id_blocks" data-route="{route}"></div>',)
    assert accordion.map.given == {"elem_id": "id_map"}


def test_settings_that_are_left_out_are_built_and_hidden(made: list[Component], tmp_path: Path) -> None:
    hidden = ("hires", "hires_scale", "hires_blocks", "blur")
    accordion = build(tmp_path, left_out=hidden)
    assert list(accordion.settings) == list(options())
    for name in options():
        if name != "enabled":
            assert accordion.settings[name].given["visible"] is (name not in hidden)
    folds = {each.args[0]: each.given["visible"] for each in made if each.kind == "Accordion" and len(each.given) == 3}
    assert folds["Hires fix"] is False
    assert folds["Method"] is True


def test_the_page_is_told_where_sliders_end_and_which_methods_a_field_is_for(made: Any, tmp_path: Path) -> None:
    build(tmp_path)
    about = next(each for each in made if each.given.get("elem_id") == "id_about")
    rules = json.loads(html.unescape(re.search('data-fields="([^"]*)"', about.args[0])[1]))
    sinkhorn = {"of": "id_method", "methods": ["asag", "similarity"]}
    units = {
        "paper": {"slider_maximum": 10.0, "step": 0.1},
        "push": {"slider_maximum": 0.5, "step": 0.005},
        "cfg": {"slider_maximum": 2.0, "step": 0.05},
    }
    for name in ("scale", "hires_scale"):
        shown = rules[f"id_{name}"]["units"]
        assert all(shown[unit].pop("help") == each.help for unit, each in options()[name][1].units.items())
    known = {name for name, (_, option) in options().items() if option.slider_maximum is not None or option.methods}
    assert set(rules) == {f"id_{name}" for name in known}
    expected = {
        "id_scale": {"slider_maximum": 10.0, "unit": "id_unit", "units": units},
        "id_iterations": {"slider_maximum": 10, **sinkhorn},
        "id_strength": {"slider_maximum": 3.0, **sinkhorn},
        "id_blur": {"of": "id_method", "methods": ["seg"]},
        "id_hires_scale": {"slider_maximum": 10.0, "unit": "id_unit", "units": units},
        "id_tolerance": {"slider_maximum": 0.5, **sinkhorn},
    }
    assert {name: rules[name] for name in expected} == expected


def test_presets_hold_what_changes_the_picture(made: list[Component], tmp_path: Path) -> None:
    accordion = build(tmp_path)
    _, inputs, outputs, _ = accordion.settings["enabled"].events["change"]
    held = [accordion.settings[name] for name, (_, option) in options().items() if option.changes_picture]
    assert inputs[1:] == held[1:]
    assert (inputs[0].kind, outputs[-1]) == ("State", inputs[0])
    assert [each.given["elem_id"] for each in outputs[:-1]] == ["id_preset", "id_preset_use"]
    assert outputs[0] is accordion.preset
    assert [accordion.settings[name] for name in ("reuse", "figures")] == [
        each for each in accordion.settings.values() if not each.events
    ]
