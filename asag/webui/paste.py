"""What a pasted infotext sets in the page, and what the host's "Send to img2img" takes along.

Hosts find the fields that are sent by what stands beside them in `infotext_fields`, in both tabs alike
(modules/infotext_utils.py: connect_paste_params_buttons): so the two tabs must share one function for each setting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from asag.presets import Presets
from asag.settings import options
from asag.webui import infotext
from asag.webui.plain import as_html, warn

if TYPE_CHECKING:
    from asag.webui.ui import Accordion

Field = tuple[Any, Callable[[Mapping[str, Any]], Any]]


class PasteFields:
    """The functions from parsed infotext parameters to what a component is set to, None leaving it alone; for the
    accordions of all tabs."""

    def __init__(self, presets: Presets) -> None:
        self.of_settings = {name: partial(infotext.pasted_value, name=name) for name in options()}
        self.of_preset = partial(infotext.pasted_preset, presets=presets)

    def fields(self, accordion: Accordion) -> list[Field]:
        """A script's `infotext_fields`."""
        settings = [(accordion.settings[name], function) for name, function in self.of_settings.items()]
        return [*settings, (accordion.preset, self.of_preset), (accordion.notice, pasted_notice)]

    def sent(self) -> list[Callable[[Mapping[str, Any]], Any]]:
        """A script's `paste_field_names`: what changes the picture, and the list of presets with it."""
        settings = [function for name, function in self.of_settings.items() if options()[name][1].changes_picture]
        return [*settings, self.of_preset]


def pasted_notice(parameters: Mapping[str, Any]) -> str:
    """What the accordion's notice is set to: what of a pasted text can't be read, which a toast tells as well."""
    problems = infotext.pasted_problems(parameters)
    if problems:
        warn(problems)
    return as_html(problems)
