"""What carries settings (infotexts, presets, API payloads, axes of plots, ui-config.json), from made-up input."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example
from hypothesis import strategies as st

from asag.hosts.refused import Refused
from asag.preset_file import PresetError
from asag.preset_uses import KEY
from asag.presets import PRESETS, Presets, compact, read_shared, write_shared
from asag.settings import AsagSettings, SettingsError, options
from asag.webui import about, api, earlier_labels, infotext, xyz
from tests.fuzzing import ANY_TEXT, ANYTHING, JSON, MAPPINGS, NAMES, SETTINGS, fuzz, refusal
from tests.test_settings import PlotDouble, cell_of, own_args

EARLIER = [name for _, option in options().values() for name in option.earlier_names]
CARRIED = [name for name, (_, option) in options().items() if option.changes_picture and name != "enabled"]


def carried(settings: AsagSettings) -> AsagSettings:
    """Without what no infotext and no preset holds."""
    return AsagSettings(**{name: getattr(settings, name) for name in CARRIED})


# Infotexts ------------------------------------------------------------------------------------------------------------


@fuzz(settings=SETTINGS)
def test_an_infotext_reads_back_what_it_wrote(settings: AsagSettings) -> None:
    text = infotext.write(settings)
    assert infotext.read({infotext.KEY: text}) == replace(carried(settings), enabled=True)
    shown = {name: infotext.pasted_value({infotext.KEY: text}, name) for name in CARRIED}
    assert AsagSettings.from_mapping(shown) == carried(settings)


VALUES = st.sampled_from(["2", "true", "mid", "σ 3", "9" * 99, ""]) | ANY_TEXT
PAIRS = st.builds("{} {}".format, NAMES | ANY_TEXT, VALUES)
INFOTEXTS = st.lists(PAIRS, max_size=5).map(";".join)


@fuzz(text=ANY_TEXT | INFOTEXTS | st.integers(0, 10**6).map("scale 1;".__mul__))
def test_of_any_infotext_the_page_takes_what_can_be_read_and_the_api_says_what_cant(text: str) -> None:
    of_page, of_api = {infotext.KEY: text}, {infotext.KEY: text}
    infotext.on_infotext_pasted("", of_page)
    told = infotext.pasted_problems(of_page)
    told.encode("utf-8")
    for name in CARRIED:
        value = infotext.pasted_value(of_page, name)
        assert value is None or AsagSettings.from_mapping({name: value})
    refused = refusal(SettingsError, lambda: infotext.read(of_api))
    if refused is None:
        assert told == ""
        assert infotext.pasted_value(of_api, "enabled") == infotext.read(of_api).enabled
        return
    problems = refused.removeprefix("ASAG settings: ")
    assert told.endswith(problems)
    with pytest.raises(Refused) as in_api:
        infotext.pasted_value(of_api, "scale")
    assert in_api.value.detail == f"ASAG: the infotext can't be read: {problems}"


# Presets --------------------------------------------------------------------------------------------------------------

PRESET_NAMES = ANY_TEXT | st.sampled_from([*PRESETS, "Custom", KEY, "mine", "x" * 61])
ENTRIES = SETTINGS.map(compact) | ANYTHING | JSON
FILES = st.dictionaries(PRESET_NAMES, ENTRIES, max_size=4) | JSON


@pytest.fixture
def presets(tmp_path: Path) -> Presets:
    return Presets(tmp_path / "presets.json")


def write(presets: Presets, content: bytes) -> None:
    """A folder with this file alone: examples share the test's."""
    for path in presets.file.path.parent.iterdir():
        path.unlink()
    presets.file.path.write_bytes(content)


def entries(presets: Presets) -> dict[str, str]:
    """What the file holds by name, as text, so that NaN equals NaN; and of the uses nothing."""
    path = presets.file.path
    found = json.loads(path.read_bytes()) if path.exists() else {}
    return {name: repr(entry) for name, entry in found.items() if name != KEY} if isinstance(found, dict) else {}


ACTS: list[Callable[[Presets, str, str, AsagSettings], object]] = [
    lambda presets, name, other, settings: presets.save(name, settings),
    lambda presets, name, other, settings: presets.rename(name, other),
    lambda presets, name, other, settings: presets.delete(name),
    lambda presets, name, other, settings: presets.keep_for(name, other),
]


@fuzz(found=FILES, act=st.sampled_from(ACTS), name=PRESET_NAMES, other=PRESET_NAMES, settings=SETTINGS)
def test_what_is_done_to_presets_is_done_or_refused_and_the_others_stay(
    presets: Presets, found: Any, act: Callable[..., object], name: str, other: str, settings: AsagSettings
) -> None:
    write(presets, json.dumps(found).encode())
    before, names = entries(presets), presets.names()
    assert names[: len(PRESETS)] == list(PRESETS)
    assert presets.name_of(presets.get(names[-1])) in names
    presets.notice.encode("utf-8")
    refused = refusal(PresetError, lambda: act(presets, name, other, settings))
    if refused is not None:
        assert "allowed: " in refused
        refused.encode("utf-8")
        assert entries(presets) == before
        return
    touched = {name, other, " ".join(name.split()), " ".join(other.split())}
    untouched = [pair for pair in before.items() if pair[0] not in touched]
    assert [pair for pair in entries(presets).items() if pair[0] not in touched] == untouched


@fuzz(name=PRESET_NAMES, settings=SETTINGS)
def test_a_preset_that_is_saved_is_found_again(presets: Presets, name: str, settings: AsagSettings) -> None:
    write(presets, b"{}")
    if refusal(PresetError, lambda: presets.save(name, settings)) is None:
        kept = " ".join(name.split())
        assert presets.names() == [*PRESETS, kept]
        assert presets.get(kept) == carried(settings)
        assert presets.name_of(settings) in presets.names()


@fuzz(content=st.binary(max_size=200) | JSON.map(lambda each: json.dumps(each).encode()))
def test_any_bytes_are_a_file_of_presets_or_kept_aside(presets: Presets, content: bytes) -> None:
    write(presets, content)
    assert presets.names()[: len(PRESETS)] == list(PRESETS)
    assert content in [path.read_bytes() for path in presets.file.path.parent.glob("presets.json*")]
    assert earlier_labels.start_values(presets.file.path, is_img2img=True) == {}


@fuzz(name=ANY_TEXT, settings=SETTINGS)
def test_a_shared_line_gives_the_same_settings(name: str, settings: AsagSettings) -> None:
    assume(":" not in name)
    assert read_shared(write_shared(name, settings)) == (name.strip(), carried(settings))


@fuzz(text=ANY_TEXT | st.builds("{}: {}".format, ANY_TEXT, st.lists(PAIRS, max_size=4).map(";".join)))
def test_any_line_is_a_preset_or_refused(text: str) -> None:
    refused = refusal((PresetError, SettingsError), lambda: read_shared(text))
    if refused is None:
        assert text.strip().startswith(read_shared(text)[0])
    else:
        assert "allowed: " in refused
        refused.encode("utf-8")


# Payloads and plots ---------------------------------------------------------------------------------------------------

ARGS = st.lists(ANYTHING | MAPPINGS | JSON, max_size=3) | MAPPINGS.map(
    lambda each: [getattr(AsagSettings.from_mapping(each), name) for name in options()]
)


@example(args=[{"unit": None, "adaptive": None}])
@fuzz(args=ARGS)
def test_any_arguments_are_settings_or_an_error_that_names_what_is_wrong(args: list[Any]) -> None:
    try:
        settings = api.read_args(args)
    except SettingsError as error:
        str(error).encode("utf-8")
        for problem in error.problems:
            name, colon, rest = problem.partition(": ")
            assert colon
            assert "allowed: " in rest
            assert name in ("args", *options(), *EARLIER) or "unknown; " in rest
    else:
        assert api.read_args([settings.__dict__]) == settings


@fuzz(args=ARGS, changes=MAPPINGS)
def test_changed_arguments_are_the_settings_with_the_changes(args: list[Any], changes: dict[str, Any]) -> None:
    try:
        settings = api.read_args(args)
        expected = replace(settings, **{k: getattr(AsagSettings.from_mapping(changes), k) for k in changes})
        assume(not expected.window.problem)
    except SettingsError:
        return
    before = copy(args)
    assert api.read_args(api.changed_args(args, changes)) == expected
    assert args == before


AXES = {
    name: [
        xyz.PREFIX + label
        for label in (option.label, f"{option.label} (noise)", *map(str.capitalize, option.earlier_names))
    ]
    for name, (_, option) in options().items()
}


@fuzz(mapping=MAPPINGS, value=JSON, data=st.data(), by_position=st.booleans())
def test_an_axis_sets_its_setting_alone_or_is_refused(
    mapping: dict[str, Any], value: Any, data: st.DataObject, by_position: bool
) -> None:
    plot, settings = PlotDouble(), AsagSettings.from_mapping(mapping)
    xyz.add_axes(plot)
    axis = data.draw(st.sampled_from(plot.axis_options))
    values = [getattr(settings, name) for name in options()]
    cell = cell_of(values if by_position else [mapping, *values[1:]])
    name = next(name for name, labels in AXES.items() if axis.label in labels)
    refused = refusal(Refused, lambda: axis.confirm(cell, [value]))
    if refused is not None:
        assert refused.startswith(f"ASAG settings: {name}: ")
        return
    axis.apply(cell, value, [value])
    kept = getattr(AsagSettings.from_mapping({name: value}), name)
    expected = replace(settings, enabled=True, **{name: kept})
    if expected.window.problem:
        with pytest.raises(SettingsError, match=r"^ASAG settings: start: "):
            api.read_args(own_args(cell))
        return
    assert api.read_args(own_args(cell)) == expected


# What hosts keep ------------------------------------------------------------------------------------------------------


START = ["scale", "blocks", "adaptive", "unit", "start", "hires blocks", "figures"]
KEYS = st.sampled_from([earlier_labels.KEY.format(tab="txt2img", label=f"ASAG {name}") for name in START])


@fuzz(kept=st.dictionaries(KEYS, JSON) | JSON)
def test_of_start_values_those_that_are_allowed_are_taken(tmp_path: Path, kept: Any) -> None:
    file = tmp_path / "ui-config.json"
    file.write_text(json.dumps(kept))
    for name, value in earlier_labels.start_values(file, is_img2img=False).items():
        assert getattr(AsagSettings.from_mapping({name: value}), name) == value
    assert earlier_labels.start_values(file, is_img2img=True) == {}


CONFIGURATIONS = st.lists(st.sampled_from([*"[] =/:.@\n", "url", "github.com", "git"]), max_size=20).map("".join)


@fuzz(text=ANY_TEXT | CONFIGURATIONS)
def test_any_git_configuration_gives_an_address_or_none(tmp_path: Path, text: str) -> None:
    (tmp_path / ".git").mkdir(exist_ok=True)
    (tmp_path / ".git" / "config").write_bytes(text.encode("utf-8", "surrogatepass"))
    found = about.docs_address(tmp_path)
    assert found == "" or (found.startswith("https://github.com/") and "github.com" in text)
