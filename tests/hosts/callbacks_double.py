"""The double of the WebUIs' modules.script_callbacks."""

from types import ModuleType
from typing import Any

NAMES = (
    *("on_cfg_denoiser", "on_cfg_denoised", "on_cfg_after_cfg"),
    *("on_before_ui", "on_app_started", "on_infotext_pasted"),
)


class Callbacks(ModuleType):
    """Calls what was registered. What a callback raises the host logs, and goes on; here it is kept."""

    def __init__(self) -> None:
        super().__init__("modules.script_callbacks")
        self.known: dict[str, list[Any]] = {}
        self.swallowed: list[Exception] = []
        for name in NAMES:
            setattr(self, name, self.known.setdefault(name, []).append)

    def call(self, name: str, *given: Any) -> None:
        for callback in self.known[name]:
            try:
                callback(*given)
            except Exception as error:
                self.swallowed.append(error)
