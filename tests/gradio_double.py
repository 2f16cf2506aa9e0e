"""The double of gradio: components that remember what they were built with and inside of, and what they are connected
with. `Page` does what the browser and gradio's server do at an event."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, ClassVar

from tests.installed import installed

KINDS = ("Accordion", "Row", "HTML", "Dropdown", "Checkbox", "Textbox", "Slider", "Button", "State")


class Component:
    """Stands for any of gradio's."""

    open: ClassVar[list[Component]] = []  # what a new component is put inside of
    made: ClassVar[list[Component]] = []

    def __init__(self, *args: Any, **given: Any) -> None:
        self.args, self.given = args, given
        self.inside = self.open[-1] if self.open else None
        self.events: dict[str, tuple[Any, list[Any], list[Any], dict[str, Any]]] = {}
        self.made.append(self)

    def __getattr__(self, event: str) -> Any:
        if event not in ("input", "change", "click"):
            raise AttributeError(event)

        def listen(function: Any, inputs: list[Any], outputs: list[Any], **how: Any) -> Then:
            self.events[event] = (function, inputs, outputs, how)
            return Then(self, event)

        return listen

    def __enter__(self) -> Component:
        self.open.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        assert self.open.pop() is self

    @property
    def kind(self) -> str:
        return type(self).__name__


class Then:
    """What gradio gives for an event: more may be done after it."""

    def __init__(self, component: Component, event: str) -> None:
        self.component, self.event = component, event

    def then(self, function: Any, inputs: list[Any], outputs: list[Any], **how: Any) -> None:
        self.component.events[f"after {self.event}"] = (function, inputs, outputs, how)


class Page:
    """The values of components, as a browser has them."""

    def __init__(self, values: dict[Component, Any]) -> None:
        self.values = dict(values)
        self.choices: dict[Component, list[str]] = {}
        self.info: dict[Component, str] = {}

    def fire(self, component: Component, event: str) -> None:
        function, inputs, outputs, _ = component.events[event]
        found = function(*(self.values[each] for each in inputs))
        updates = [found] if len(outputs) == 1 else list(found)
        for output, update in zip(outputs, updates, strict=True):
            if output.kind == "State" and isinstance(update, list):
                self.values[output] = update
                continue
            for name, held in (("value", self.values), ("choices", self.choices), ("info", self.info)):
                if name in update:
                    held[output] = update[name]
        if f"after {event}" in component.events:
            self.fire(component, f"after {event}")


@contextmanager
def gradio() -> Iterator[list[Component]]:
    """While open, `import gradio` gives the double, to ASAG's modules too. Gives the list of the components that are
    made."""
    module = ModuleType("gradio")
    module.__version__ = "4.40.0"
    for kind in KINDS:
        setattr(module, kind, type(kind, (Component,), {}))
    module.update = lambda **given: given
    module.Warning = lambda text: None
    with installed({"gradio": module}):
        Component.open, Component.made = [], []
        yield Component.made
