"""Presets: the built-in ones are sound, the user's own survive what happens to files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asag.presets import PRESETS, PresetError, Presets, compact, complete, read_shared, write_shared
from asag.settings import AsagSettings, SettingsError


@pytest.fixture
def presets(tmp_path):
    return Presets(tmp_path / "data" / "presets.json")


MINE = AsagSettings(scale=2.25, blocks="mid, out.3", iterations=3, adaptive=True)


def test_the_built_in_ones_can_be_read_and_told_apart(presets):
    assert presets.names() == ["Paper", "Gentle", "Strong", "Clean", "Fast"]
    for name in PRESETS:
        assert presets.name_of(presets.get(name)) == name
    paper = presets.get("Paper")
    assert (paper.scale, paper.iterations, paper.blocks) == (1.5, 2, "auto")


def test_what_does_not_change_the_picture_is_no_part_of_a_preset(presets):
    presets.save("mine", AsagSettings(enabled=True, scale=2.0, reuse=False))
    assert presets.get("mine") == AsagSettings(scale=2.0)
    assert presets.name_of(AsagSettings(enabled=True, scale=2.0, reuse=False)) == "mine"
    assert presets.name_of(AsagSettings(scale=2.1)) is None


def test_save_rename_delete(presets):
    assert presets.save("  my\n own ", MINE) == "my own"
    again = Presets(presets.path)
    assert again.names()[-1] == "my own"
    assert again.get("my own") == MINE
    assert again.rename("my own", "Überholt 🎨") == "Überholt 🎨"
    assert presets.names()[5:] == ["Überholt 🎨"]
    presets.save("second", AsagSettings())
    presets.delete("Überholt 🎨")
    assert presets.names()[5:] == ["second"]
    assert [path.name for path in presets.path.parent.iterdir()] == ["presets.json"]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda p: p.save(" ", MINE), "name: ''; allowed: 1 to 60"),
        (lambda p: p.save("a:b", MINE), "without a colon"),
        (lambda p: p.save("x" * 61, MINE), "1 to 60"),
        (lambda p: p.save("Paper", MINE), "'Paper' comes with ASAG"),
        (lambda p: p.rename("Paper", "mine"), "allowed: your own: kept"),
        (lambda p: p.rename("kept", "Fast"), "comes with ASAG"),
        (lambda p: p.rename("kept", "kept 2"), "is taken"),
        (lambda p: p.delete("other"), "preset: 'other'; allowed: your own: kept, kept 2"),
        (lambda p: p.get("other"), "allowed: Paper, Gentle, Strong, Clean, Fast, kept, kept 2"),
    ],
)
def test_what_cannot_be_done_is_told_and_loses_nothing(presets, act, message):
    presets.save("kept", MINE)
    presets.save("kept 2", MINE)
    with pytest.raises(PresetError, match=message):
        act(presets)
    assert presets.get("kept") == presets.get("kept 2") == MINE


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"a": 1}', '{"a": {"sclae": 1}}', '{"a": {"scale": "x"}}', "\x00", '{"Paper": {}}']
)
def test_a_broken_file_is_kept_aside_and_told(presets, content):
    presets.path.parent.mkdir(parents=True)
    for number in ("", "2"):
        presets.path.write_text(content)
        assert presets.names() == list(PRESETS)
        assert presets.path.with_name(f"presets.json.broken{number}").read_text() == content
        assert f"kept as presets.json.broken{number}." in presets.notice
    presets.save("mine", MINE)
    assert presets.get("mine") == MINE


def test_bytes_that_are_no_text_are_kept_aside(presets):
    presets.path.parent.mkdir(parents=True)
    presets.path.write_bytes(b"\xff\xfe\x80")
    assert presets.names() == list(PRESETS)
    assert presets.path.with_name("presets.json.broken").read_bytes() == b"\xff\xfe\x80"


def test_a_write_that_fails_leaves_the_file_as_it_was(presets, monkeypatch):
    presets.save("mine", MINE)
    before = presets.path.read_text()

    def full(self, *args, **kwargs):
        with open(self, "w") as file:
            file.write("{")
        raise OSError(28, "No space left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(PresetError, match="No space left"):
        presets.save("other", MINE)
    assert presets.path.read_text() == before
    assert [path.name for path in presets.path.parent.iterdir()] == ["presets.json"]


settings = st.builds(
    AsagSettings,
    scale=st.floats(0, 100),
    iterations=st.integers(1, 50),
    blocks=st.sampled_from(["auto", "late", "mid, out.3", "in.4-8"]),
    method=st.sampled_from(["asag", "seg"]),
    rescale=st.floats(0, 1),
    contrast=st.floats(0, 1),
    adaptive=st.booleans(),
)


@given(settings)
def test_a_shared_line_gives_the_same_settings(given):
    assert read_shared(write_shared("My preset", given)) == ("My preset", given)


@given(settings)
def test_a_compact_preset_is_complete(given):
    assert complete(json.loads(json.dumps(compact(given)))) == given


@pytest.mark.parametrize("text", ["", "no colon", "name:", "name:  "])
def test_a_line_that_is_none_is_told(text):
    with pytest.raises(PresetError, match="allowed: a line such as"):
        read_shared(text)


def test_a_line_with_a_wrong_setting_names_it():
    with pytest.raises(SettingsError, match=r"scale: '-1'; allowed"):
        read_shared("mine: scale -1; blocks mid")
