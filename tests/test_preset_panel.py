"""The panel of presets on a double of gradio: what each event sets, and that a mistake leaves all else as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asag.preset_uses import Model
from asag.presets import PRESETS, Presets
from asag.settings import AsagSettings, options
from tests.gradio_double import Component, Page, gradio

HELD = [name for name, (_, option) in options().items() if name != "enabled" and option.changes_picture]
BUILT_IN = ["Paper", "Gentle", "Strong", "Clean", "Fast"]


class Panel:
    """A panel, the components of settings beside it, and the page."""

    def __init__(self, presets: Presets, start: AsagSettings) -> None:
        from asag.webui.preset_panel import PresetPanel

        self.presets, self.model = presets, Model("SDXL", "one.safetensors")
        self.panel = PresetPanel(presets, lambda name: f"id_{name}", lambda: self.model)
        self.panel.build_list(start)
        self.panel.build_manager()
        self.switch = Component()
        self.settings = {name: Component() for name in HELD}
        self.panel.connect(self.switch, self.settings)
        values = {component: getattr(start, name) for name, component in self.settings.items()}
        own = {self.panel.list: self.panel.list.given["value"], self.panel.notice: "as before"}
        own |= {self.panel.use: self.panel.use.given["value"], self.panel.order: self.panel.order.args[0]}
        self.page = Page(values | own | {self.panel.name: "", self.panel.shared: ""})

    def set(self, **settings: Any) -> None:
        self.page.values.update({self.settings[name]: value for name, value in settings.items()})

    def press(self, button: str) -> None:
        self.page.fire(self.panel.buttons[button], "click")

    @property
    def given(self) -> AsagSettings:
        """What the fields say; those of start and end are text."""
        values = {name: self.page.values[component] for name, component in self.settings.items()}
        return AsagSettings.from_mapping(values)

    @property
    def chosen(self) -> Any:
        return self.page.values[self.panel.list]

    @property
    def notice(self) -> Any:
        return self.page.values[self.panel.notice]


@pytest.fixture
def panel(tmp_path: Path) -> Iterator[Panel]:
    with gradio():
        yield Panel(Presets(tmp_path / "presets.json"), AsagSettings(scale=0.1, unit="cfg"))


def said(text: str) -> str:
    return f'<p class="asag-notice">{text}</p>'


def test_the_list_begins_at_the_preset_with_the_settings_that_there_are(panel: Panel) -> None:
    assert panel.chosen == "Gentle"
    assert panel.panel.list.args == (BUILT_IN,)
    assert panel.panel.list.given["allow_custom_value"] is True
    assert panel.panel.list.given["info"] == "Sets all options at once."
    assert Panel(panel.presets, AsagSettings(scale=0.77)).chosen == "Custom"


def test_what_the_components_are(panel: Panel) -> None:
    own = {panel.panel.list: "preset", panel.panel.name: "preset_name", panel.panel.shared: "preset_text"}
    own |= {panel.panel.use: "preset_use", panel.panel.look: "preset_look"}
    own |= {button: f"preset_{name.lower()}" for name, button in panel.panel.buttons.items()}
    assert {each: each.given["elem_id"] for each in own} == {each: f"id_{name}" for each, name in own.items()}
    assert all(each.do_not_save_to_config is True for each in own)
    assert list(panel.panel.buttons) == ["Save", "Rename", "Delete", "Export", "Import"]
    assert [panel.panel.buttons[name].args[0] for name in panel.panel.buttons] == list(panel.panel.buttons)
    assert {each.inside.given["elem_classes"][0] for each in panel.panel.buttons.values()} == {"asag-buttons"}
    assert panel.panel.notice.given["elem_id"] == "id_preset_notice"
    assert [each.given["max_lines"] for each in (panel.panel.name, panel.panel.shared)] == [1, 1]
    folded = panel.panel.notice.inside
    assert (folded.kind, folded.given["open"], folded.given["elem_id"]) == ("Accordion", False, "id_presets")
    listening = [panel.switch, *panel.settings.values(), *own]
    heard = [how for component in listening for *_, how in component.events.values()]
    assert len(heard) == 7 + len(HELD) + 5
    assert all(how == {"queue": False, "show_progress": "hidden"} for how in heard)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_preset_that_is_chosen_sets_all_settings(panel: Panel, name: str) -> None:
    panel.set(iterations=7, contrast=0.5, hires="first")
    panel.page.values[panel.panel.list] = name
    panel.page.fire(panel.panel.list, "input")
    assert panel.given == AsagSettings(**PRESETS[name])
    fields = [panel.page.values[panel.settings[each]] for each in ("start", "end")]
    assert fields == ["0", "0.6" if name == "Fast" else "1"]
    assert (panel.chosen, panel.notice) == (name, "")


def test_custom_that_is_chosen_changes_nothing(panel: Panel) -> None:
    panel.set(iterations=7)
    panel.page.values[panel.panel.list] = "Custom"
    panel.page.fire(panel.panel.list, "input")
    assert panel.given == AsagSettings(scale=0.1, unit="cfg", iterations=7)
    assert (panel.chosen, panel.notice) == ("Custom", "as before")


def test_a_preset_that_is_gone_is_told_and_changes_nothing(panel: Panel) -> None:
    panel.page.values[panel.panel.list] = "<b>"
    panel.page.fire(panel.panel.list, "input")
    assert panel.given == AsagSettings(scale=0.1, unit="cfg")
    assert panel.notice.startswith(said("preset: &#x27;&lt;b&gt;&#x27;; allowed: Paper")[:-4])


def test_a_setting_that_is_touched_shows_whose_settings_these_are(panel: Panel) -> None:
    for settings, name in (({"iterations": 3}, "Custom"), ({"iterations": 2}, "Gentle"), ({"scale": 0.5}, "Strong")):
        panel.set(**settings)
        panel.page.fire(panel.settings["iterations"], "input")
        assert panel.chosen == name
    panel.set(blocks="in.")  # half typed
    panel.page.fire(panel.settings["blocks"], "input")
    assert panel.chosen == "Custom"
    assert panel.notice == "as before"


def test_save_keeps_the_settings_under_the_name(panel: Panel) -> None:
    panel.set(iterations=3, blocks="mid")
    panel.page.values[panel.panel.name] = " <i>mine "
    panel.press("Save")
    assert panel.presets.get("<i>mine") == AsagSettings(scale=0.1, unit="cfg", iterations=3, blocks="mid")
    assert (panel.chosen, panel.notice) == ("<i>mine", said("Saved: &lt;i&gt;mine"))
    assert panel.page.choices[panel.panel.list] == [*BUILT_IN, "<i>mine"]
    assert panel.given == AsagSettings(scale=0.1, unit="cfg", iterations=3, blocks="mid")


def test_rename_and_delete(panel: Panel) -> None:
    panel.page.values[panel.panel.name] = "one"
    panel.set(scale=2.5)
    panel.press("Save")
    panel.page.values[panel.panel.name] = "two"
    panel.press("Rename")
    assert (panel.chosen, panel.notice) == ("two", said("one is now two."))
    assert panel.page.choices[panel.panel.list] == [*BUILT_IN, "two"]
    panel.press("Delete")
    assert (panel.chosen, panel.notice) == ("Custom", said("Deleted: two"))
    assert panel.page.choices[panel.panel.list] == BUILT_IN
    assert panel.given == AsagSettings(scale=2.5, unit="cfg")


def test_export_writes_a_line_and_import_reads_it(panel: Panel) -> None:
    panel.set(scale=2.0, blocks="mid", end=0.5)
    panel.press("Export")
    line = panel.page.values[panel.panel.shared]
    assert line == "Gentle: scale 2.0; blocks mid; end 0.5; unit cfg"
    assert panel.notice == ""
    panel.set(scale=7.0, iterations=9)
    panel.page.values[panel.panel.shared] = line.replace("Gentle", "theirs")
    panel.press("Import")
    assert panel.given == AsagSettings(scale=2.0, blocks="mid", end=0.5, unit="cfg")
    assert (panel.chosen, panel.notice) == ("theirs", said("Saved: theirs"))
    assert panel.presets.get("theirs") == panel.given


@pytest.mark.parametrize(
    ("button", "typed", "told"),
    [
        ("Save", {"name": ""}, "allowed: 1 to 60"),
        ("Rename", {"name": "x"}, "preset: &#x27;Gentle&#x27;"),
        ("Delete", {}, "preset: &#x27;Gentle&#x27;"),
        ("Import", {"shared": "a: scale -1"}, "scale: &#x27;-1&#x27;; allowed: a number"),
        ("Import", {"shared": "a"}, "allowed: a line such as"),
    ],
)
def test_what_cant_be_done_is_told_and_changes_nothing_else(
    panel: Panel, button: str, typed: dict[str, str], told: str
) -> None:
    panel.page.values.update({getattr(panel.panel, name): text for name, text in typed.items()})
    before = dict(panel.page.values)
    panel.press(button)
    assert told in panel.notice
    assert panel.page.values == before | {panel.panel.notice: panel.notice}
    assert panel.presets.names() == BUILT_IN


@pytest.mark.parametrize("button", ["Save", "Export"])
def test_settings_that_arent_allowed_are_neither_saved_nor_shared(panel: Panel, button: str) -> None:
    panel.page.values[panel.panel.name] = "mine"
    panel.set(scale=-1.0)
    panel.press(button)
    assert "scale: -1.0; allowed: a number from 0 to 100" in panel.notice
    assert panel.page.values[panel.panel.shared] == ""
    assert panel.presets.names() == BUILT_IN


def test_the_switch_looks_for_presets_that_another_tab_saved(panel: Panel) -> None:
    panel.presets.save("another", AsagSettings(scale=0.1, unit="cfg", blocks="mid"))
    panel.set(blocks="mid")
    panel.page.fire(panel.switch, "change")
    assert panel.chosen == "another"
    assert panel.page.choices[panel.panel.list] == [*BUILT_IN, "another"]
    assert panel.page.info[panel.panel.list] == "Sets all options at once."


@pytest.mark.parametrize("event", ["switch", "look"])
def test_the_list_is_at_custom_for_a_moment_where_the_page_shows_another_order(panel: Panel, event: str) -> None:
    component, name = (panel.switch, "change") if event == "switch" else (panel.panel.look, "click")

    def first_answer() -> str:
        look, inputs, *_ = component.events[name]
        return look(*(panel.page.values[each] for each in inputs))[0]["value"]

    assert first_answer() == "Gentle"
    for change in (
        lambda: panel.presets.save("another", AsagSettings(scale=4.5)),
        lambda: panel.presets.keep_for("another", "SDXL"),
        lambda: setattr(panel, "model", Model("Flux", "two.gguf")),
        lambda: panel.presets.delete("another"),
    ):
        change()
        assert first_answer() == "Custom"
        panel.page.fire(component, name)
        assert panel.chosen == first_answer() == "Gentle"


@pytest.mark.parametrize("button", ["Save", "Rename", "Delete", "Import"])
def test_the_list_of_a_page_that_changed_the_presets_itself_stays_where_it_is(panel: Panel, button: str) -> None:
    panel.set(scale=4.5)
    panel.page.values |= {panel.panel.name: "mine", panel.panel.shared: "theirs: scale 4.25"}
    panel.press("Save")
    panel.page.values[panel.panel.name] = "ours"
    panel.set(scale=4.5 if button == "Rename" else 4.75)
    panel.press(button)
    look, inputs, *_ = panel.panel.look.events["click"]
    shown = look(*(panel.page.values[each] for each in inputs))[0]
    assert shown["value"] == panel.chosen
    assert shown["choices"] == panel.page.choices[panel.panel.list]


def test_a_file_that_cant_be_read_leaves_the_built_in_presets_and_is_told(panel: Panel) -> None:
    panel.presets.file.path.mkdir(parents=True)
    panel.page.fire(panel.switch, "change")
    assert panel.page.choices[panel.panel.list] == BUILT_IN
    assert panel.page.info[panel.panel.list].startswith("Sets all options at once. ")
    assert "presets.json can't be read" in panel.page.info[panel.panel.list]
    assert panel.chosen == "Custom"


def use(panel: Panel, value: str) -> None:
    panel.page.values[panel.panel.use] = value
    panel.page.fire(panel.panel.use, "input")


def test_a_preset_is_kept_for_a_kind_or_a_checkpoint_and_offered_first(panel: Panel) -> None:
    assert panel.panel.use.args == (["any model", "one.safetensors", "SDXL"],)
    use(panel, "SDXL")
    assert panel.panel.use not in panel.page.choices, "its list is still open in gradio 3: it mustn't be filled anew"
    assert (panel.chosen, panel.notice) == ("Gentle", said("Gentle comes first in the list for SDXL."))
    assert panel.page.choices[panel.panel.list] == ["★ Gentle (SDXL)", *(each for each in BUILT_IN if each != "Gentle")]
    assert panel.given == AsagSettings(scale=0.1, unit="cfg")
    # Chosen by its mark, it is the preset.
    panel.set(scale=0.5)
    panel.page.values[panel.panel.list] = "★ Gentle (SDXL)"
    panel.page.fire(panel.panel.list, "input")
    assert (panel.chosen, panel.given) == ("Gentle", AsagSettings(scale=0.1, unit="cfg"))
    assert panel.page.values[panel.panel.use] == "SDXL"
    use(panel, "one.safetensors")
    assert panel.page.choices[panel.panel.list][0] == "★ Gentle (one.safetensors)"
    use(panel, "any model")
    assert panel.notice == said("Gentle is for any model.")
    assert panel.page.choices[panel.panel.list] == BUILT_IN
    assert not panel.presets.uses()


def test_the_list_follows_the_model_and_nothing_else_changes(panel: Panel) -> None:
    panel.presets.keep_for("Fast", "Flux")
    panel.presets.keep_for("Gentle", "SDXL")
    panel.model = Model("Flux", "two.gguf")
    before = dict(panel.page.values)
    panel.page.fire(panel.panel.look, "click")
    assert panel.page.choices[panel.panel.list][:2] == ["★ Fast (Flux)", "Paper"]
    # What the chosen preset is kept for, although that model isn't chosen now.
    names = panel.page.choices[panel.panel.list]
    assert panel.page.values == before | {panel.panel.use: "SDXL", panel.panel.order: names}
    assert panel.page.choices[panel.panel.use] == ["any model", "SDXL", "two.gguf", "Flux"]
    panel.page.values[panel.panel.list] = "★ Gentle (SDXL)"  # of before
    panel.press("Export")
    assert panel.page.values[panel.panel.shared].startswith("Gentle: ")


def test_a_preset_of_ones_own_by_its_mark(panel: Panel) -> None:
    panel.set(scale=2.5)
    panel.page.values[panel.panel.name] = "mine"
    panel.press("Save")
    use(panel, "SDXL")
    panel.page.values.update({panel.panel.list: "★ mine (SDXL)", panel.panel.name: "ours"})
    panel.press("Rename")
    assert (panel.chosen, panel.notice) == ("ours", said("mine is now ours."))
    assert panel.page.choices[panel.panel.list][0] == "★ ours (SDXL)"
    panel.page.values[panel.panel.list] = "★ ours (SDXL)"
    panel.press("Delete")
    assert (panel.chosen, panel.notice) == ("Custom", said("Deleted: ours"))
    assert panel.page.values[panel.panel.use] == "any model"


@pytest.mark.parametrize(
    ("chosen", "value", "told"),
    [
        ("Gentle", "SDXXL", "use for: &#x27;SDXXL&#x27;; allowed: any model, SDXL refiner, SDXL, SD2, SD1.5, Chroma"),
        ("Custom", "SDXL", "preset: &#x27;Custom&#x27;; allowed: Paper"),
    ],
)
def test_what_a_preset_cannot_be_kept_for(panel: Panel, chosen: str, value: str, told: str) -> None:
    panel.page.values[panel.panel.list] = chosen
    panel.set(scale=0.77)
    use(panel, value)
    assert told in panel.notice
    assert panel.presets.uses() == {}


def test_a_setting_that_is_touched_shows_what_its_preset_is_kept_for(panel: Panel) -> None:
    panel.presets.keep_for("Strong", "SDXL")
    panel.set(scale=0.5)
    panel.page.fire(panel.settings["scale"], "input")
    assert (panel.chosen, panel.page.values[panel.panel.use]) == ("Strong", "SDXL")
    panel.set(scale=4.5)
    panel.page.fire(panel.settings["scale"], "input")
    assert (panel.chosen, panel.page.values[panel.panel.use]) == ("Custom", "any model")


def test_while_the_list_is_at_custom_for_a_moment_the_settings_name_the_preset(panel: Panel) -> None:
    """A look at the presets puts it there, and a click may come before that look's second answer."""
    panel.set(scale=3.25)
    panel.page.values[panel.panel.list] = "Custom"
    panel.press("Export")
    assert panel.page.values[panel.panel.shared] == "Custom: scale 3.25; unit cfg"
    panel.presets.save("ours", panel.given)
    panel.press("Export")
    assert panel.page.values[panel.panel.shared] == "ours: scale 3.25; unit cfg"
    use(panel, "SDXL")
    assert panel.presets.uses() == {"ours": "SDXL"}
    panel.page.values[panel.panel.list] = "Custom"
    panel.press("Delete")
    assert "preset: &#x27;Custom&#x27;; allowed: your own presets: ours" in panel.notice
    assert "ours" in panel.presets.names(), "another preset may have these settings too"
