"""Every option of the extension, once: name, default, bounds, label and help.

The user interface, the infotext, the API and the X/Y/Z plot are derived from the metadata of these fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from typing import Any

from asag.echo import shown_names
from asag.guidance import SCHEDULES
from asag.operators import METHODS, Operator, make_operator
from asag.option import Option, option, read_value


class SettingsError(ValueError):
    """One or more settings are wrong. `problems` has a line for each: field, value and what is allowed."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(problems)  # what it is made from again in another process

    def __str__(self) -> str:
        return "ASAG settings: " + "; ".join(self.problems)


@dataclass(frozen=True)
class AsagSettings:
    """The settings of one generation; construct through `from_mapping` where values come from outside."""

    enabled: bool = option(False, "Enable ASAG", "Guide this generation with ASAG.")
    scale: float = option(
        1.5,
        "Scale",
        "How far each step is pushed away from the weakened prediction. Higher changes the picture more; "
        "too high burns its colours.",
        minimum=0.0,
        maximum=100.0,
        slider_maximum=30.0,
        step=0.1,
    )
    blocks: str = option(
        "auto",
        "Blocks",
        "Which self-attention is weakened: auto (the middle), late (cheaper), all, or addresses such as mid, in.4-8, "
        "out.3.0, joint.7.",
        block_list=True,
        group="What is weakened",
    )
    iterations: int = option(
        2,
        "Iterations",
        "Sinkhorn iterations of the weakened attention. The paper uses 2; more costs time and changes little.",
        minimum=1,
        maximum=50,
        slider_maximum=10,
        step=1,
        group="What is weakened",
    )
    strength: float = option(
        1.0,
        "Strength",
        "How strongly unlike tokens attract each other (a factor on the paper's lambda). 0 is uniform attention.",
        minimum=0.0,
        maximum=10.0,
        slider_maximum=3.0,
        step=0.05,
        group="What is weakened",
    )
    method: str = option(
        "asag",
        "Method",
        "How attention is weakened: asag, or pag, seg, uniform and similarity for comparison.",
        choices=METHODS,
        group="What is weakened",
    )
    start: float = option(
        0.0,
        "Start",
        "Guide from this fraction of the steps on.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
        group="When",
    )
    end: float = option(
        1.0,
        "End",
        "Guide until this fraction of the steps. Steps outside cost nothing.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
        group="When",
    )
    schedule: str = option(
        "constant",
        "Schedule",
        "How the scale runs between start and end: constant, falling linearly or as a cosine, or as a bell.",
        choices=SCHEDULES,
        group="When",
    )
    rescale: float = option(
        0.0,
        "Rescale",
        "Pulls the contrast, CFG's share of it too, back to that of the plain prediction. Helps against burnt colours.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
        group="Against burnt colours",
    )
    contrast: float = option(
        1.0,
        "Contrast",
        "How much of what is mere contrast in the push stays. 1: all, as in the paper; 0: none. Try 0 "
        "where higher scales burn colours.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
        group="Against burnt colours",
    )
    adaptive: bool = option(
        False,
        "Adaptive",
        "Divides the scale by the running size of the push, per image: the scale is then that size (try 0.02 to 0.2).",
        group="Against burnt colours",
    )
    blur: float = option(
        10000.0,
        "Blur",
        "For the method seg alone: how far queries are blurred, in tokens. From 9999 on it is their mean.",
        minimum=0.1,
        maximum=10000.0,
        step=0.1,
        group="What is weakened",
    )
    hires: str = option(
        "both",
        "Hires fix",
        "Which pass is guided when hires fix is on: both, the first alone, or the hires pass alone.",
        choices=("both", "first", "hires"),
        group="In the hires pass",
    )
    hires_scale: float = option(
        0.0,
        "Hires scale",
        "The scale in the hires pass; 0: the same scale as in the first.",
        minimum=0.0,
        maximum=100.0,
        slider_maximum=30.0,
        step=0.1,
        group="In the hires pass",
    )
    hires_blocks: str = option(
        "same",
        "Hires blocks",
        "The blocks in the hires pass: same, or a list as above.",
        keywords=("same",),
        block_list=True,
        group="In the hires pass",
    )
    reuse: bool = option(
        True,
        "Share work",
        "Takes what precedes the weakened attention from the normal pass: the same picture in less time. Off: a whole "
        "extra pass, for little memory: sharing holds half as many activations again in the rest of the model.",
        changes_picture=False,
        group="Work and memory",
    )
    figures: bool = option(
        False,
        "Figures",
        "Adds a figure after each picture: scale and size of the push over the steps, where in the picture it acted, "
        "and what it did to attention. Takes some time; isn't saved; the API returns it after the pictures. None in "
        "scripts such as X/Y/Z plot.",
        changes_picture=False,
        group="What it did",
    )
    tolerance: float = option(
        0.0,
        "Tolerance",
        "Stops the iterations of an attention head once one of them moves its potentials by less than this on average, "
        "so that iterations is the most it takes. 0: never.",
        minimum=0.0,
        maximum=10.0,
        slider_maximum=0.5,
        step=0.001,
        group="What is weakened",
    )

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> AsagSettings:
        """Settings from any subset of the names, the rest at their defaults.

        Numbers may come as text ("1.5") and booleans as "true" or "false", as they do from infotexts and plots.

        Raises:
            SettingsError: listing every unknown name and bad value.
        """
        given, problems = read_settings(mapping)
        if problems:
            raise SettingsError(problems)
        return cls(**given)

    @property
    def active(self) -> bool:
        """Whether these settings can change anything: switched on, a scale in some pass, a window that isn't empty."""
        return self.enabled and not self.empty_window and any(self.in_pass(hires)[0] > 0 for hires in (False, True))

    @property
    def empty_window(self) -> str:
        """Why no step lies in the window, for the user; empty when some may."""
        return "" if self.start < self.end else f"start, {self.start:g}, isn't before end, {self.end:g}"

    def operator(self) -> Operator:
        """What the chosen layers compute in the perturbed pass."""
        return make_operator(self.method, self.iterations, self.strength, self.blur, self.tolerance)

    def in_pass(self, hires: bool) -> tuple[float, str]:
        """Scale (0: unguided) and blocks of the first pass, or of the hires pass."""
        if self.hires != "both" and hires != (self.hires == "hires"):
            return 0.0, self.blocks
        if not hires:
            return self.scale, self.blocks
        return self.hires_scale or self.scale, self.blocks if self.hires_blocks == "same" else self.hires_blocks


def options() -> dict[str, tuple[Field[Any], Option]]:
    """Every setting in the order of the user interface: name to (dataclass field, option)."""
    return {each.name: (each, each.metadata["option"]) for each in fields(AsagSettings)}


def read_settings(mapping: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The settings in `mapping` that can be read, by name, and a line for each name and value that can't be."""
    known = {each.name: each for each in fields(AsagSettings)}
    unknown = [name for name in mapping if name not in known]
    problems = [f"{shown_names(unknown)}: unknown; allowed: {', '.join(known)}"] if unknown else []
    given: dict[str, Any] = {}
    for name, each in known.items():
        if name not in mapping:
            continue
        try:
            given[name] = read_value(each, mapping[name])
        except ValueError as error:
            problems.append(str(error))
    return given, problems
