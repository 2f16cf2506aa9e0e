"""Tests over made-up input: 500 examples each in `make test`, 10 000 in `make fuzz`; and where the input comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asag.settings import AsagSettings, options

EXAMPLES = 500
# Strings of any code points, halves of surrogate pairs among them: JSON may hold these, UTF-8 can't.
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)


def fuzz(**arguments: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Hypothesis' `given` with EXAMPLES, or as many as the profile has (pytest --hypothesis-profile fuzz)."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        examples = max(EXAMPLES, settings.default.max_examples if settings.default else 0)
        # Fixtures of these tests hold nothing that an example changes.
        limits = settings(max_examples=examples, suppress_health_check=[HealthCheck.function_scoped_fixture])
        return pytest.mark.fuzz(limits(given(**arguments)(test)))

    return decorate


def refusal(kinds: type[Exception] | tuple[type[Exception], ...], act: Callable[[], object]) -> str | None:
    """What `act` is refused with, an error of these kinds; None when it isn't."""
    try:
        act()
    except kinds as error:
        return str(error)
    return None


LEAVES = st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | ANY_TEXT
# What JSON can hold, as Python reads it: NaN, infinity and numbers of any size among it. Deeper strategies take long.
JSON = LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(ANY_TEXT, LEAVES | st.just([[{"a": [0]}]]), max_size=2)

PARTS = ["in.", "out.", "mid", "joint.", "double.", "single.", "layer.", "d", "m", "u", "auto", "late", "all", "same"]
BLOCK_PIECES = [*PARTS, *":h , - . : aligned 0 1 4 12 9999 ١ H é".split(), " ", "\n", "\u3000"]  # noqa: SIM905
# Near lists of blocks, right and wrong.
BLOCK_TEXT = st.lists(st.sampled_from(BLOCK_PIECES), max_size=12).map("".join)
SPANS = st.tuples(st.integers(0, 30), st.integers(0, 9)).map(lambda pair: f"{pair[0]}-{pair[0] + pair[1]}")
NUMBERS = st.integers(0, 30).map(str) | SPANS
HEADS = st.just("") | st.just(":aligned") | st.lists(NUMBERS, min_size=1, max_size=3).map(lambda s: ":h" + ",".join(s))
PLACES = st.just("mid") | st.builds(
    "{}.{}{}".format,
    st.sampled_from(["in", "out", "joint", "double", "single", "layer"]),
    NUMBERS,
    st.just("") | NUMBERS.map(".{}".format),
)
COUNTED = st.builds("{}{}".format, st.sampled_from("du"), NUMBERS) | st.just("m0")
# Lists of blocks that can be read.
BLOCKS = st.builds("{}{}".format, st.sampled_from(["auto", "late", "all"]), HEADS) | st.lists(
    st.builds("{}{}".format, PLACES | COUNTED, HEADS), min_size=1, max_size=4
).map(", ".join)

NOISE_PIECES = ["sigma", "σ", "Σ", "%", " ", "=", ".", "0", "5", "100", "99999", "0000000001", "-", "e", "٥", "nan"]
NOISE_TEXT = st.lists(st.sampled_from(NOISE_PIECES), max_size=8).map("".join)
DECIMALS = st.decimals(0, 100, places=9, allow_nan=False).map("{:f}".format)
LEVELS = DECIMALS.map("sigma {}".format) | DECIMALS.map("{}%".format)


def _allowed(name: str) -> st.SearchStrategy[Any]:
    field, option = options()[name]
    if option.choices:
        return st.sampled_from(option.choices)
    if option.block_list:
        return BLOCKS | st.sampled_from(option.keywords) if option.keywords else BLOCKS
    if isinstance(field.default, bool):
        return st.booleans()
    if isinstance(field.default, int):
        return st.integers(int(option.minimum or 0), int(option.maximum or 0))
    return st.floats(option.minimum, option.maximum)


# Of each setting, values that are allowed. Start and end are fractions here.
ALLOWED = {name: _allowed(name) for name in options()}
WINDOWS = st.fixed_dictionaries({}, optional={"start": LEVELS, "end": LEVELS})
# Mappings that are allowed, with any subset of the settings.
MAPPINGS = st.fixed_dictionaries({}, optional=ALLOWED) | st.builds(
    lambda mapping, window: {**mapping, "start": 0.0, "end": 1.0, **window},
    st.fixed_dictionaries({}, optional=ALLOWED),
    WINDOWS,
)
SETTINGS = MAPPINGS.map(AsagSettings.from_mapping)


def _near(name: str) -> st.SearchStrategy[Any]:
    option = options()[name][1]
    bounds = [bound for bound in (option.minimum, option.maximum) if bound is not None]
    edges = [bound + step for bound in bounds for step in (-1, -1e-9, 0, 1e-9, 1)] or [0]
    written = (ALLOWED[name] | st.sampled_from(edges) | st.booleans()).flatmap(
        lambda value: st.sampled_from([value, str(value), f" {str(value).upper()}\t", [value]])
    )
    return written | BLOCK_TEXT | NOISE_TEXT | JSON


NAMES = st.sampled_from([*options(), "adaptive"])
# Mappings of which anything may be wrong.
ANYTHING = st.dictionaries(NAMES | ANY_TEXT, JSON, max_size=4) | st.fixed_dictionaries(
    {}, optional={name: _near(name) for name in options()}
)
