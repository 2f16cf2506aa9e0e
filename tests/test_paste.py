"""What pasting sets, what "Send to img2img" sends, and that text stays text; gradio is a double here."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import pytest

from asag.presets import Presets
from asag.settings import options
from asag.webui import infotext
from tests.installed import installed


@pytest.fixture(params=["3.41.2", "4.40.0"])
def toasts(request):
    """The version of gradio, and the toasts that it is asked to show."""
    gradio = ModuleType("gradio")
    gradio.__version__, shown = request.param, []
    gradio.Warning = shown.append
    with installed({"gradio": gradio}):
        yield request.param, shown


def accordion(tab):
    """The double of an accordion: names in place of components."""
    settings = {name: f"{tab} {name}" for name in options()}
    return SimpleNamespace(settings=settings, preset=f"{tab} preset", notice=f"{tab} notice")


def pasted(text, fields):
    """What the host sets (modules/infotext_utils.py: connect_paste)."""
    parameters = {"ASAG": text} if text else {}
    infotext.on_infotext_pasted(text, parameters)
    values = {component: function(parameters) for component, function in fields}
    return {component.partition(" ")[2]: value for component, value in values.items() if value is not None}


def test_what_can_be_read_is_taken_and_the_rest_is_told_as_text(toasts, tmp_path):
    from asag.webui.paste import PasteFields

    version, shown = toasts
    fields = PasteFields(Presets(tmp_path / "presets.json")).fields(accordion("txt2img"))
    found = pasted("scale 4.0; <img src=x> 3; blocks mid", fields)
    assert (found["enabled"], found["scale"], found["blocks"], found["preset"]) == (True, 4.0, "mid", "Custom")
    assert "&lt;img: unknown" in found["notice"]
    assert "<img" not in found["notice"]
    # gradio 4 shows a toast's message as HTML, gradio 3 as text.
    assert len(shown) == 1
    assert ("&lt;img: unknown" if version[0] == "4" else "<img: unknown") in shown[0]
    # The next text takes the notice away.
    assert pasted("scale 1.5", fields)["notice"] == pasted("", fields)["notice"] == ""
    assert len(shown) == 1


def test_send_to_finds_the_same_settings_in_both_tabs(toasts, tmp_path):
    from asag.webui.paste import PasteFields

    paste = PasteFields(Presets(tmp_path / "presets.json"))
    source, target = paste.fields(accordion("txt2img")), paste.fields(accordion("img2img"))
    # As modules/infotext_utils.py: connect_paste_params_buttons matches them.
    inputs = [component for component, function in source if function in paste.sent()]
    outputs = [component for component, function in target if function in paste.sent()]
    assert [each.partition(" ")[2] for each in inputs] == [each.partition(" ")[2] for each in outputs]
    kept = {name for name, (_, option) in options().items() if not option.changes_picture}
    assert {each.partition(" ")[2] for each in inputs} == {*options(), "preset"} - kept
