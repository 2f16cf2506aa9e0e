"""Every option of the extension, once: name, default, bounds, label and help.

The user interface, the infotext, the API and the X/Y/Z plot are derived from the metadata of these fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from typing import Any

from asag.blended import Blended
from asag.guidance import SCHEDULES
from asag.noise import Window
from asag.operators import METHODS, Operator, make_operator
from asag.option import Option, option, read_value, unknown_names
from asag.units import UNITS, scales

# The methods that iterate.
SINKHORN = ("asag", "similarity")


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

    enabled: bool = option(False, "Enable ASAG", "Turns ASAG on for this generation.")
    scale: float = option(
        1.5,
        "Scale",
        "How strongly ASAG changes the picture. Try 0.5 to 4; the paper uses 1.5. Too much burns the colours.",
        minimum=0.0,
        maximum=100.0,
        slider_maximum=10.0,
        step=0.1,
        units=scales(),
    )
    blocks: str = option(
        "auto",
        "Blocks",
        "The blocks of the model whose attention is weakened. Click them in the map, or write auto (the middle), "
        "late (faster), all, or names such as mid, in.4-8, out.3.0, joint.7.",
        block_list=True,
        group="Blocks",
    )
    iterations: int = option(
        2,
        "Iterations",
        "Sinkhorn iterations of the weakened attention. The paper uses 2. More take longer and change little.",
        minimum=1,
        maximum=50,
        slider_maximum=10,
        step=1,
        group="Method",
        methods=SINKHORN,
    )
    strength: float = option(
        1.0,
        "Strength",
        "How far attention is weakened. The paper uses 1. At 0 every part of the picture counts alike.",
        minimum=0.0,
        maximum=10.0,
        slider_maximum=3.0,
        step=0.05,
        group="Method",
        methods=SINKHORN,
    )
    method: str = option(
        "asag",
        "Method",
        "How attention is weakened: asag is the paper's way. Use pag, seg, uniform and similarity to compare.",
        choices=METHODS,
        group="Method",
    )
    start: float | str = option(
        0.0,
        "Start",
        "When ASAG begins. 0 is the first step, 0.5 is halfway. Or by noise: 20% of the model's noise schedule, or a "
        "noise level such as sigma 5.4.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
        noise=True,
        group="Steps",
    )
    end: float | str = option(
        1.0,
        "End",
        "When ASAG stops. 1 is after the last step. Steps without ASAG take no extra time. Or by noise, as in Start.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
        noise=True,
        group="Steps",
    )
    schedule: str = option(
        "constant",
        "Schedule",
        "How the scale runs from start to end. constant keeps it. linear and cosine lower it to 0. bell raises it and "
        "lowers it again.",
        choices=SCHEDULES,
        group="Steps",
    )
    rescale: float = option(
        0.0,
        "Rescale",
        "Brings the picture's contrast back to what it is without ASAG and CFG. Try it when colours burn. 0 is off.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
        group="Against burnt colours",
    )
    contrast: float = option(
        1.0,
        "Contrast",
        "How much ASAG may raise contrast. 1 is the paper's method. Try 0 when colours burn.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
        group="Against burnt colours",
    )
    unit: str = option(
        "paper",
        "Unit",
        "What the scale means. paper: a factor, as in the paper. push: how far ASAG changes each step. cfg: how far "
        "compared with CFG, whatever the block and the model.",
        choices=UNITS,
        earlier_names=("adaptive",),
        earlier_values={"true": "push", "false": "paper"},
    )
    blur: float = option(
        10000.0,
        "Blur",
        "How widely seg blurs attention. From 9999 on it blurs over the whole picture.",
        minimum=0.1,
        maximum=10000.0,
        step=0.1,
        group="Method",
        methods=("seg",),
    )
    hires: str = option(
        "both",
        "Hires fix",
        "Where ASAG works when hires fix is on: in both passes, in the first alone, or in the hires pass alone.",
        choices=("both", "first", "hires"),
        group="Hires fix",
    )
    hires_scale: float = option(
        0.0,
        "Hires scale",
        "The scale in the hires pass. 0 takes the scale of the first pass.",
        minimum=0.0,
        maximum=100.0,
        slider_maximum=10.0,
        step=0.1,
        units=scales("The scale in the hires pass. 0 takes the scale of the first pass."),
        group="Hires fix",
    )
    hires_blocks: str = option(
        "same",
        "Hires blocks",
        "The blocks in the hires pass. same takes those of the first pass; or write them as in Blocks.",
        keywords=("same",),
        block_list=True,
        group="Hires fix",
    )
    reuse: bool = option(
        True,
        "Share work",
        "Saves time: ASAG uses again what the model has already computed. The picture stays the same. Turn it off "
        "when memory runs out.",
        changes_picture=False,
        group="Speed and figures",
    )
    figures: bool = option(
        False,
        "Figures",
        "Shows after each picture where and how much ASAG changed it. It takes some time and isn't saved. Scripts such "
        "as X/Y/Z plot show none.",
        changes_picture=False,
        group="Speed and figures",
    )
    tolerance: float = option(
        0.0,
        "Tolerance",
        "Ends the iterations early once they change less than this. 0 never ends them early.",
        minimum=0.0,
        maximum=10.0,
        slider_maximum=0.5,
        step=0.001,
        group="Method",
        methods=SINKHORN,
    )
    amount: float = option(
        1.0,
        "Amount",
        "How much of the ordinary attention ASAG replaces by the weakened one. 1 is all of it, as in the paper.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
        group="Method",
    )
    every: int = option(
        1,
        "Compute every",
        "1: ASAG computes its change in each step. 2: in every second step; the step between uses the last change "
        "again. More is faster and less exact.",
        minimum=1,
        maximum=4,
        step=1,
        group="Steps",
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
        """Whether these settings can change anything: switched on, a scale in some pass, nothing that rules it out."""
        return self.enabled and not self.no_effect and any(self.in_pass(hires)[0] > 0 for hires in (False, True))

    @property
    def no_effect(self) -> str:
        """Why no step is guided, for the user: an empty window, or an amount of 0; empty when some may be."""
        if self.window.empty:
            return self.window.empty
        return "" if self.amount else "amount is 0, so attention stays as it is"

    @property
    def window(self) -> Window:
        """When ASAG works."""
        return Window(self.start, self.end)

    def operator(self) -> Operator:
        """What the chosen layers compute in the perturbed pass."""
        whole = make_operator(self.method, self.iterations, self.strength, self.blur, self.tolerance)
        return whole if self.amount == 1 else Blended(whole, self.amount)

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


def current_names(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping with today's names in place of settings' earlier ones; those beside today's stay."""
    today = {old: name for name, (_, option) in options().items() for old in option.earlier_names}
    return {name if today.get(name) in mapping else today.get(name, name): value for name, value in mapping.items()}


def read_settings(mapping: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The settings in `mapping` that can be read, by name, and a line for each name and value that can't be.

    Earlier names of settings are read as today's; beside today's they are a problem.
    """
    mapping = current_names(mapping)
    known = {each.name: each for each in fields(AsagSettings)}
    problems = unknown_names(mapping, {name: option for name, (_, option) in options().items()})
    given: dict[str, Any] = {}
    for name, each in known.items():
        if name not in mapping:
            continue
        try:
            given[name] = read_value(each, mapping[name])
        except ValueError as error:
            problems.append(str(error))
    window = Window(given.get("start", known["start"].default), given.get("end", known["end"].default))
    return given, [*problems, window.problem] if window.problem else problems
