"""Settings, lists of blocks and windows by noise from made-up input: an error names the field, or nothing is wrong."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import example
from hypothesis import strategies as st

from asag.blocks import BlocksError, parse_blocks, select, select_heads
from asag.guidance import SCHEDULES
from asag.models.ldm_unet import LdmUnet
from asag.noise import NoiseSchedule, Window, read_noise
from asag.settings import AsagSettings, SettingsError, options
from asag.webui import block_map
from tests.fuzzing import ALLOWED, ANY_TEXT, ANYTHING, BLOCK_TEXT, BLOCKS, LEVELS, MAPPINGS, NOISE_TEXT, fuzz, refusal
from tests.test_blocks import MID, SDXL

LONGEST_PROBLEM = 1000
INVENTORY = [(address, address) for address in SDXL]


def problems_of(mapping: dict[str, Any]) -> list[str]:
    try:
        AsagSettings.from_mapping(mapping)
    except SettingsError as error:
        return error.problems
    return []


@example(mapping={"unit": False, "adaptive": None})
@fuzz(mapping=ANYTHING)
def test_each_wrong_value_is_named_and_no_other_one(mapping: dict[str, Any]) -> None:
    problems = problems_of(mapping)
    for problem in problems:
        assert "allowed: " in problem
        assert len(problem) < LONGEST_PROBLEM
        assert problem.isprintable()
        problem.encode("utf-8")
    known = {"adaptive": "unit"}
    # An earlier name beside today's isn't read.
    read = {name: value for name, value in mapping.items() if known.get(name) not in mapping}
    alone = {known.get(name, name): bool(problems_of({name: value})) for name, value in read.items()}
    wrong = {name for name, is_wrong in alone.items() if is_wrong and name in options()}
    named = {problem.partition(":")[0] for problem in problems if " with end: " not in problem}
    assert {name for name in named if name in options()} == wrong | ({"unit"} & named)
    assert any("unknown; " in problem for problem in problems) == (not set(mapping) <= {*options(), *known})


@fuzz(mapping=ANYTHING)
def test_what_is_read_is_within_its_bounds_and_reads_back_the_same(mapping: dict[str, Any]) -> None:
    if problems_of(mapping):
        return
    settings = AsagSettings.from_mapping(mapping)
    assert AsagSettings.from_mapping(json.loads(json.dumps(asdict(settings)))) == settings
    for name, (field, option) in options().items():
        value = getattr(settings, name)
        if isinstance(value, str):
            assert isinstance(field.default, str) or read_noise(value) == value
            assert not option.choices or value in option.choices
        elif option.minimum is not None:
            assert type(value) is type(field.default)
            assert option.minimum <= value <= option.maximum
        else:
            assert isinstance(value, bool)


@fuzz(mapping=MAPPINGS)
def test_what_is_allowed_is_taken_as_it_is(mapping: dict[str, Any]) -> None:
    settings = AsagSettings.from_mapping(mapping)
    for name, value in mapping.items():
        kept = getattr(settings, name)
        assert kept == (read_noise(value) if name in ("start", "end") and isinstance(value, str) else value)


@fuzz(text=BLOCK_TEXT | BLOCKS | ANY_TEXT)
def test_a_list_of_blocks_is_read_and_printed_or_refused(text: str) -> None:
    refused = refusal(BlocksError, lambda: parse_blocks(text))
    if refused is not None:
        assert "allowed: " in refused
        assert refused.isprintable()
        return
    blocks = parse_blocks(text)
    assert parse_blocks(str(blocks)) == blocks
    missing = refusal(BlocksError, lambda: select(blocks, INVENTORY, MID))
    if missing is None:
        assert set(select(blocks, INVENTORY, MID)) <= set(SDXL)
        missing = refusal(BlocksError, lambda: select_heads(blocks, SDXL, MID))
    assert missing is None or "has: " in missing or "allowed: one of them" in missing


@fuzz(blocks=BLOCK_TEXT | BLOCKS | ANY_TEXT, toggle=BLOCK_TEXT | BLOCKS | ANY_TEXT, heads=st.integers(1, 20))
def test_the_map_of_blocks_answers_whatever_is_asked(blocks: str, toggle: str, heads: int) -> None:
    counts = dict.fromkeys(SDXL, heads)
    found = block_map.inventory(LdmUnet(), SDXL, blocks, toggle, counts)
    told = {key: value for key, value in found.items() if key != "text"}
    json.dumps(told, ensure_ascii=False).encode("utf-8")
    again = block_map.inventory(LdmUnet(), SDXL, found["text"], "", counts)
    assert again["blocks"] == found["blocks"]
    assert found["text"] == blocks or again["problem"] is None


def test_lists_as_long_as_they_may_be_are_looked_at_item_by_item(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the time grows as the list does: one selection for each of its items."""
    selections = []
    monkeypatch.setattr(block_map, "select", lambda *given: selections.append(1) or select(*given))
    for items in (10, 100, 400):
        selections.clear()
        block_map.inventory(LdmUnet(), SDXL, "d0-1," * items)
        assert len(selections) == items


@fuzz(text=NOISE_TEXT | LEVELS | ANY_TEXT)
def test_noise_reads_back_as_it_is_kept(text: str) -> None:
    kept = read_noise(text)
    assert kept is None or read_noise(kept) == kept
    written = text.strip().lower().replace(" ", "").replace("sigma", "").replace("σ", "").strip("=%")
    assert kept is None or float(kept.strip("sigma %")) == float(written)


MOMENTS = st.floats(0, 1) | LEVELS.map(read_noise)
NOISES = st.sampled_from(
    [NoiseSchedule(), NoiseSchedule((0.03, 0.5, 3.0, 14.6)), NoiseSchedule.of_alphas([0.9, 0.5, 0])]
)


@fuzz(
    start=MOMENTS,
    end=MOMENTS,
    noise=NOISES,
    share=st.floats(0, 1),
    scale=st.floats(0, 100),
    schedule=st.sampled_from(SCHEDULES),
)
def test_no_window_raises_and_an_empty_one_guides_nothing(
    start: Any, end: Any, noise: NoiseSchedule, share: float, scale: float, schedule: str
) -> None:
    window = Window(start, end)
    assert window.problem in ("", *problems_of({"start": start, "end": end}))
    if not window.by_noise or window.problem:
        return
    found = window.scale(scale, schedule, noise, share, 20)
    assert 0 <= found <= scale * (1 + 1e-9)
    assert not (window.empty and found)


@fuzz(name=st.sampled_from([*ALLOWED]), value=st.sampled_from(["x", [], 7.5, {}, None]), length=st.integers(61, 5000))
def test_a_problem_is_short_however_long_the_value(name: str, value: Any, length: int) -> None:
    for long in ([value] * length, {"a" * length: value}, "x" * length):
        (problem,) = problems_of({name: long})
        assert problem.startswith(f"{name}: ")
        assert len(problem) < LONGEST_PROBLEM
