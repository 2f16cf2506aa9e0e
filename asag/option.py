"""What is known of one setting beyond its name and type, and how a value for it is read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field
from typing import Any, NamedTuple

from asag import noise
from asag.blocks import BlocksError, parse_blocks
from asag.echo import shown, shown_names


class InUnit(NamedTuple):
    """A scale in one of its units: where its slider ends, by which steps it goes, and its help."""

    slider_maximum: float
    step: float
    help: str


@dataclass(frozen=True)
class Option:
    """What is known of one setting beyond its name, type and default.

    A setting that doesn't change the picture (`changes_picture`) is in no infotext, plot or preset. `group` is the
    section of the user interface; settings without one come first. A text may be a list of blocks (`block_list`), or
    one of the `keywords`. `slider_maximum` is where the slider ends when the field beside it takes more. `methods` are
    those with which the setting means something; none named: all. A number may have a level or percentage of noise in
    its place (`noise`, see noise.py). `units` says for each unit of the scale how the page shows it. `earlier_names`
    are those that the setting had before, and `earlier_values` gives today's value for what was written then, in lower
    case: both are still read.
    """

    label: str
    help: str
    minimum: float | None = None
    maximum: float | None = None
    slider_maximum: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    block_list: bool = False
    changes_picture: bool = True
    group: str = ""
    methods: tuple[str, ...] = ()
    noise: bool = False
    units: Mapping[str, InUnit] = field(default_factory=dict)
    earlier_names: tuple[str, ...] = ()
    earlier_values: Mapping[str, str] = field(default_factory=dict)

    def shown(self, value: Any) -> Any:
        """What the field of the page holds for a value: of a number that may be noise, text."""
        return noise.print_moment(value) if self.noise else value


def option(default: Any, label: str, help: str, **details: Any) -> Any:
    """A dataclass field with that default, which knows its Option."""
    return field(default=default, metadata={"option": Option(label, help, **details)})


def read_value(each: Field[Any], given: Any) -> Any:
    """The value of a setting from what came from outside: numbers and booleans also as text.

    Raises ValueError naming the setting, the value and what is allowed.
    """
    known: Option = each.metadata["option"]
    default: Any = each.default
    if isinstance(default, bool):
        return _read_bool(each.name, given)
    if isinstance(default, str):
        return _read_text(each.name, given, known)
    if known.noise:
        return _read_moment(each.name, given, known)
    return _read_number(each.name, given, known, whole=isinstance(default, int))


def _read_bool(name: str, given: Any) -> bool:
    if isinstance(given, bool):
        return given
    if isinstance(given, str) and given.strip().lower() in ("true", "false"):
        return given.strip().lower() == "true"
    raise ValueError(f"{name}: {shown(given)}; allowed: true or false")


def _read_text(name: str, given: Any, known: Option) -> str:
    if known.choices:
        text = str(given).strip().lower() if isinstance(given, (str, bool)) else given
        if isinstance(text, str):
            text = known.earlier_values.get(text, text)
        if text not in known.choices:
            raise ValueError(f"{name}: {shown(given)}; allowed: {', '.join(known.choices)}")
        return text
    if not isinstance(given, str):
        raise ValueError(f"{name}: {shown(given)}; allowed: text")
    if given.strip().lower() in known.keywords:
        return given.strip().lower()
    if known.block_list:
        try:
            parse_blocks(given)
        except BlocksError as error:
            raise ValueError(f"{name}: {error}") from error
    return given.strip()


def _read_moment(name: str, given: Any, known: Option) -> float | int | str:
    found = noise.read_noise(given) if isinstance(given, str) else None
    return _read_number(name, given, known, whole=False) if found is None else found


def _read_number(name: str, given: Any, known: Option, whole: bool) -> float | int:
    if known.minimum is None or known.maximum is None:
        raise TypeError(f"{name}: an option that is a number needs a minimum and a maximum")
    allowed = f"{'a whole number' if whole else 'a number'} from {known.minimum:g} to {known.maximum:g}"
    if known.noise:
        allowed += f", {noise.ALLOWED}"
    try:
        number = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (known.minimum <= number <= known.maximum) or (whole and not number.is_integer()):
        raise ValueError(f"{name}: {shown(given)}; allowed: {allowed}")
    return int(number) if whole else number


def unknown_names(names: Iterable[str], known: Mapping[str, Option]) -> list[str]:
    """A line for all names that aren't settings', and one for each earlier name of a setting; `known`: by name."""
    today = {old: name for name, option in known.items() for old in option.earlier_names}
    unknown = [name for name in names if name not in known and name not in today]
    problems = [f"{shown_names(unknown)}: unknown; allowed: {', '.join(known)}"] if unknown else []
    twice = [(name, today[name]) for name in names if name in today]
    return problems + [f"{name}: an earlier name of {now}; allowed: {now} alone" for name, now in twice]
