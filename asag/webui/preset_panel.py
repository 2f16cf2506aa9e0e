"""The list of presets beside the scale, and below the advanced options what saves, renames, deletes and shares them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from asag.echo import shown, shown_names
from asag.models.tensor_names import KIND_NAMES
from asag.preset_file import PresetError
from asag.preset_uses import ANY, Model, offered, plain
from asag.presets import CUSTOM, PRESETS, Presets, read_shared, write_shared
from asag.settings import AsagSettings, SettingsError, options
from asag.webui.plain import as_html

QUIET = {"queue": False, "show_progress": "hidden"}
BUTTONS = ("Save", "Rename", "Delete", "Export", "Import")


class PresetPanel:
    """The components and what connects them with those of the settings. Nothing here is an argument of the script.

    `model` says which model the next generation runs.
    """

    def __init__(self, presets: Presets, elem_id: Callable[[str], str], model: Callable[[], Model] = Model) -> None:
        self.presets, self.elem_id, self.model = presets, elem_id, model
        self.list: Any = None
        self.order: Any = None  # what the list of a page offers
        self.look: Any = None
        self.use: Any = None
        self.name: Any = None
        self.shared: Any = None
        self.notice: Any = None
        self.buttons: dict[str, Any] = {}
        self.held: list[str] = []  # the names of the settings that presets hold, as `connect` gets them

    def build_list(self, settings: AsagSettings) -> None:
        """The list, at the preset with these settings; and the button that the page's script presses when another
        checkpoint is chosen."""
        names, told = self._names()
        self.order = _not_kept(gr.State(names))
        self.look = _not_kept(
            gr.Button("Presets of this model", elem_id=self.elem_id("preset_look"), elem_classes=["asag-look"])
        )
        self.list = _not_kept(
            gr.Dropdown(
                names,
                value=self._name_of(settings),
                label="Preset",
                info=_info(told),
                # Else gradio 4 refuses names that were saved after the page was built, and "Custom".
                allow_custom_value=True,
                elem_id=self.elem_id("preset"),
            )
        )

    def build_manager(self) -> None:
        with gr.Accordion("Your presets", open=False, elem_id=self.elem_id("presets")):
            with gr.Row():
                self.name = _not_kept(
                    gr.Textbox(
                        label="Preset name",
                        info="Save stores the settings under this name. Rename gives it to the chosen preset.",
                        max_lines=1,
                        elem_id=self.elem_id("preset_name"),
                    )
                )
                self.use = _not_kept(
                    gr.Dropdown(
                        [ANY, *self.model().names],
                        value=ANY,
                        label="Use for",
                        info="The chosen preset comes first in the list when such a model is chosen.",
                        allow_custom_value=True,
                        elem_id=self.elem_id("preset_use"),
                    )
                )
                self.shared = _not_kept(
                    gr.Textbox(
                        label="Preset as text",
                        info="Export writes the settings here, to share. Import saves what is written here.",
                        placeholder="My preset: scale 2.0; blocks mid",
                        max_lines=1,
                        elem_id=self.elem_id("preset_text"),
                    )
                )
            with gr.Row(elem_classes=["asag-buttons"]):
                for name in BUTTONS:
                    elem_id = self.elem_id(f"preset_{name.lower()}")
                    self.buttons[name] = _not_kept(gr.Button(name, size="sm", min_width=60, elem_id=elem_id))
            self.notice = gr.HTML("", elem_id=self.elem_id("preset_notice"))

    def connect(self, switch: Any, settings: dict[str, Any]) -> None:
        """Connect with the accordion's switch and the components of the settings that presets hold, by name."""
        components = list(settings.values())
        self.held = list(settings)
        chosen = [self.list, self.use]
        outputs = [*chosen, self.order, self.notice, *components]
        self.list.input(self._choose, [self.list], outputs, **QUIET)
        # Another tab may have saved presets since. Not on focus: the order would change under the user's hand.
        for looks in (switch.change, self.look.click):
            looked = looks(self._look_again, [self.order, *components], [*chosen, self.order], **QUIET)
            looked.then(self._touched, components, chosen, **QUIET)
        for component in components:
            component.input(self._touched, components, chosen, **QUIET)
        kept = self.use.input(self._keep_for, [*chosen, *components], outputs, **QUIET)
        kept.then(self._shown_list, components, [self.list], **QUIET)
        self.buttons["Save"].click(self._save, [self.name, *components], outputs, **QUIET)
        self.buttons["Rename"].click(self._rename, [self.list, self.name], outputs, **QUIET)
        self.buttons["Delete"].click(self._delete, [self.list], outputs, **QUIET)
        self.buttons["Export"].click(self._export, [self.list, *components], [self.shared, self.notice], **QUIET)
        self.buttons["Import"].click(self._import, [self.shared], outputs, **QUIET)

    # -- what the page calls ---------------------------------------------------------------------------------------

    def _choose(self, chosen: str) -> list[Any]:
        if chosen == CUSTOM:
            return [gr.update(), self._use_of(CUSTOM), gr.update(), gr.update(), *self._unchanged()]

        def act() -> tuple[str, str, list[Any]]:
            name = self._plain(chosen)
            return name, "", self._updates(self.presets.get(name))

        return self._told(act, fill=False)

    def _touched(self, *values: Any) -> tuple[Any, Any]:
        name = self._shown(values)
        return gr.update(value=name), self._use_of(name)

    def _shown_list(self, *values: Any) -> Any:
        return gr.update(value=self._shown(values))

    def _look_again(self, order: list[str], *values: Any) -> tuple[Any, Any, list[str]]:
        """Where the page shows another order, the list is at Custom for a moment: see _keep_for."""
        names, told = self._names()
        name = self._shown(values)
        listed = gr.update(value=name if names == order else CUSTOM, choices=names, info=_info(told))
        return listed, self._use_of(name), names

    def _keep_for(self, chosen: str, use: str, *values: Any) -> list[Any]:
        """Changes the order of the list. gradio 4 then goes on counting by the old one until the list's value changes,
        and a click on what stands in the chosen one's old place does nothing: so it's at Custom for a moment.

        "Use for" isn't updated: its list is still open in gradio 3, which would then show only what was chosen."""

        def act() -> tuple[str, str, list[Any]]:
            name, known = self._meant(chosen, values), [ANY, *KIND_NAMES, *self.model().names]
            if use not in known and use != self.presets.uses().get(name):
                raise PresetError(f"use for: {shown(use)}; allowed: {shown_names(known)}")
            self.presets.keep_for(name, use)
            told = f"{name} is for any model." if use == ANY else f"{name} comes first in the list for {use}."
            return CUSTOM, told, self._unchanged()

        listed, _, *rest = self._told(act)
        return [listed, gr.update(), *rest]

    def _save(self, name: str, *values: Any) -> list[Any]:
        def act() -> tuple[str, str, list[Any]]:
            saved = self.presets.save(name, self._given(values))
            return saved, f"Saved: {saved}", self._unchanged()

        return self._told(act)

    def _rename(self, chosen: str, name: str) -> list[Any]:
        def act() -> tuple[str, str, list[Any]]:
            before = self._plain(chosen)
            renamed = self.presets.rename(before, name)
            return renamed, f"{before} is now {renamed}.", self._unchanged()

        return self._told(act)

    def _delete(self, chosen: str) -> list[Any]:
        def act() -> tuple[str, str, list[Any]]:
            name = self._plain(chosen)
            self.presets.delete(name)
            return CUSTOM, f"Deleted: {name}", self._unchanged()

        return self._told(act)

    def _export(self, chosen: str, *values: Any) -> tuple[Any, Any]:
        try:
            return gr.update(value=write_shared(self._meant(chosen, values), self._given(values))), gr.update(value="")
        except (PresetError, SettingsError) as error:
            return gr.update(), gr.update(value=as_html(str(error)))

    def _import(self, text: str) -> list[Any]:
        def act() -> tuple[str, str, list[Any]]:
            name, found = read_shared(text)
            saved = self.presets.save(name, found)
            return saved, f"Saved: {saved}", self._updates(self.presets.get(saved))

        return self._told(act)

    # -- what these share ------------------------------------------------------------------------------------------

    def _told(self, act: Callable[[], tuple[str, str, list[Any]]], fill: bool = True) -> list[Any]:
        """Do something; update the list, the notice and the settings, or the notice alone when it can't be done. The
        list gets its names anew if it's to `fill`."""
        try:
            chosen, notice, rest = act()
        except (PresetError, SettingsError) as error:
            return [gr.update(), gr.update(), gr.update(), gr.update(value=as_html(str(error))), *self._unchanged()]
        listed, order = gr.update(value=chosen), gr.update()
        if fill:
            order = self._names()[0]
            listed = gr.update(choices=order, value=chosen)
        return [listed, self._use_of(chosen), order, gr.update(value=as_html(notice)), *rest]

    def _given(self, values: tuple[Any, ...]) -> AsagSettings:
        return AsagSettings.from_mapping(dict(zip(self.held, values, strict=True)))

    def _updates(self, settings: AsagSettings) -> list[Any]:
        return [gr.update(value=options()[name][1].shown(getattr(settings, name))) for name in self.held]

    def _unchanged(self) -> list[Any]:
        return [gr.update() for _ in self.held]

    def _name_of(self, settings: AsagSettings) -> str:
        try:
            return self.presets.name_of(settings) or CUSTOM
        except PresetError:
            return CUSTOM

    def _shown(self, values: tuple[Any, ...]) -> str:
        """What the list shows when the components have these values."""
        try:
            return self._name_of(self._given(values))
        except SettingsError:
            return CUSTOM  # a value half typed

    def _meant(self, chosen: str, values: tuple[Any, ...]) -> str:
        """The name of the chosen preset. The list may be at Custom for a moment only, see _look_again: then the name
        of the preset that has these values, if there is one. Not for Delete and Rename: two may have them."""
        return self._shown(values) if chosen == CUSTOM else self._plain(chosen)

    def _names(self) -> tuple[list[str], str]:
        try:
            return offered(self.presets.names(), self.presets.uses(), self.model()), self.presets.notice
        except PresetError as error:
            return list(PRESETS), str(error)

    def _plain(self, chosen: str) -> str:
        """The name of the preset that the list calls so; raises PresetError when the file can't be read."""
        return plain(chosen, self.presets.names(), self.presets.uses())

    def _use_of(self, name: str) -> Any:
        """What "Use for" shows when the list is at this preset."""
        try:
            use = self.presets.uses().get(name, ANY)
        except PresetError:
            use = ANY
        return gr.update(value=use, choices=list(dict.fromkeys([ANY, use, *self.model().names])))


def _not_kept(component: Any) -> Any:
    """A component that ui-config.json says nothing of (the hosts' modules/ui_loadsave.py): its start value would be
    that of another moment, and keys of what is no argument of a script are shared with all extensions."""
    component.do_not_save_to_config = True
    return component


def _info(told: str) -> str:
    return f"Sets all options at once. {told}".strip()
