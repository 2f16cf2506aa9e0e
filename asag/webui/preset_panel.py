"""The list of presets beside the scale, and below the advanced options what saves, renames, deletes and shares them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from asag.preset_file import PresetError
from asag.presets import CUSTOM, PRESETS, Presets, read_shared, write_shared
from asag.settings import AsagSettings, SettingsError
from asag.webui.plain import as_html

QUIET = {"queue": False, "show_progress": "hidden"}


class PresetPanel:
    """The components and what connects them with those of the settings. Nothing here is an argument of the script."""

    def __init__(self, presets: Presets, elem_id: Callable[[str], str]) -> None:
        self.presets, self.elem_id = presets, elem_id
        self.list: Any = None
        self.name: Any = None
        self.shared: Any = None
        self.notice: Any = None
        self.buttons: dict[str, Any] = {}

    def build_list(self) -> None:
        names, told = self._names()
        self.list = gr.Dropdown(
            names,
            value=names[0],
            label="ASAG preset",
            info=_info(told),
            # Else gradio 4 refuses names that were saved after the page was built.
            allow_custom_value=True,
            elem_id=self.elem_id("preset"),
        )

    def build_manager(self) -> None:
        with gr.Accordion("Your presets", open=False, elem_id=self.elem_id("presets")):
            with gr.Row():
                self.name = gr.Textbox(
                    label="ASAG preset name",
                    info="Save keeps the settings above under this name; Rename gives it to the chosen preset.",
                    max_lines=1,
                    elem_id=self.elem_id("preset_name"),
                )
                for name in ("Save", "Rename", "Delete"):
                    self._button(name)
            with gr.Row():
                self.shared = gr.Textbox(
                    label="ASAG preset as text",
                    info="To hand a preset to others: Write puts the settings here, Read saves what stands here.",
                    placeholder="My preset: scale 2.0; blocks mid",
                    max_lines=1,
                    elem_id=self.elem_id("preset_text"),
                )
                for name in ("Write", "Read"):
                    self._button(name)
            self.notice = gr.HTML("", elem_id=self.elem_id("preset_notice"))

    def _button(self, name: str) -> None:
        elem_id = self.elem_id(f"preset_{name.lower()}")
        self.buttons[name] = gr.Button(name, size="sm", scale=0, min_width=90, elem_id=elem_id)

    def connect(self, switch: Any, settings: dict[str, Any]) -> None:
        """Connect with the accordion's switch and the components of the settings that presets hold, by name."""
        names, components = list(settings), list(settings.values())

        def given(values: tuple[Any, ...]) -> AsagSettings:
            return AsagSettings.from_mapping(dict(zip(names, values, strict=True)))

        def updates(found: AsagSettings) -> list[Any]:
            return [gr.update(value=getattr(found, name)) for name in names]

        unchanged = [gr.update() for _ in names]

        def choose(name: str) -> list[Any]:
            if name == CUSTOM:
                return [gr.update(), gr.update(), *unchanged]
            return self._told(lambda: (name, "", updates(self.presets.get(name))), unchanged)

        def touched(*values: Any) -> Any:
            try:
                return gr.update(value=self.presets.name_of(given(values)) or CUSTOM)
            except (PresetError, SettingsError):
                # A value half typed.
                return gr.update(value=CUSTOM)

        def save(name: str, *values: Any) -> list[Any]:
            def act() -> tuple[str, str, list[Any]]:
                saved = self.presets.save(name, given(values))
                return saved, f"Saved: {saved}", unchanged

            return self._told(act, unchanged)

        def rename(chosen: str, name: str) -> list[Any]:
            def act() -> tuple[str, str, list[Any]]:
                renamed = self.presets.rename(chosen, name)
                return renamed, f"{chosen} is now {renamed}.", unchanged

            return self._told(act, unchanged)

        def delete(chosen: str) -> list[Any]:
            def act() -> tuple[str, str, list[Any]]:
                self.presets.delete(chosen)
                return CUSTOM, f"Deleted: {chosen}", unchanged

            return self._told(act, unchanged)

        def write(chosen: str, *values: Any) -> tuple[Any, Any]:
            try:
                return gr.update(value=write_shared(chosen, given(values))), gr.update(value="")
            except SettingsError as error:
                return gr.update(), gr.update(value=as_html(str(error)))

        def read(text: str) -> list[Any]:
            def act() -> tuple[str, str, list[Any]]:
                name, found = read_shared(text)
                saved = self.presets.save(name, found)
                return saved, f"Saved: {saved}", updates(self.presets.get(saved))

            return self._told(act, unchanged)

        def look_again() -> Any:
            names, told = self._names()
            return gr.update(choices=names, info=_info(told))

        outputs = [self.list, self.notice, *components]
        self.list.input(choose, [self.list], outputs, **QUIET)
        # Another tab may have saved presets since. Not on focus: gradio 4 would filter the open list by what is chosen.
        switch.change(look_again, [], [self.list], **QUIET)
        for component in components:
            component.input(touched, components, [self.list], **QUIET)
        self.buttons["Save"].click(save, [self.name, *components], outputs, **QUIET)
        self.buttons["Rename"].click(rename, [self.list, self.name], outputs, **QUIET)
        self.buttons["Delete"].click(delete, [self.list], outputs, **QUIET)
        self.buttons["Write"].click(write, [self.list, *components], [self.shared, self.notice], **QUIET)
        self.buttons["Read"].click(read, [self.shared], outputs, **QUIET)

    def _told(self, act: Callable[[], tuple[str, str, list[Any]]], unchanged: list[Any]) -> list[Any]:
        """Do something; update the list, the notice and the settings, or the notice alone when it can't be done."""
        try:
            chosen, notice, rest = act()
        except (PresetError, SettingsError) as error:
            return [gr.update(), gr.update(value=as_html(str(error))), *unchanged]
        return [gr.update(choices=self._choices(), value=chosen), gr.update(value=as_html(notice)), *rest]

    def _names(self) -> tuple[list[str], str]:
        try:
            return self.presets.names(), self.presets.notice
        except PresetError as error:
            return list(PRESETS), str(error)

    def _choices(self) -> list[str]:
        return self._names()[0]


def _info(told: str) -> str:
    return f"Sets everything below at once. {told}".strip()
