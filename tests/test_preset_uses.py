"""Presets that are kept for a kind of model or a checkpoint: what the file holds, and what the list offers first."""

from __future__ import annotations

import json

import pytest

from asag.preset_file import PresetError
from asag.preset_uses import ANY, KEY, Model, offered, plain
from asag.presets import PRESETS, Presets
from asag.settings import AsagSettings

MINE = AsagSettings(scale=2.25)
XL, FLUX = Model("SDXL", "xl/one.safetensors"), Model("Flux", "two.gguf")


@pytest.fixture
def presets(tmp_path):
    found = Presets(tmp_path / "presets.json")
    found.save("mine", MINE)
    return found


def written(presets):
    return json.loads(presets.file.path.read_text("utf-8"))


def test_what_suits_the_model_comes_first_the_checkpoints_own_before_the_kinds(presets):
    presets.save("other", AsagSettings(scale=3.0))
    presets.keep_for("Fast", "SDXL")
    presets.keep_for("other", "xl/one.safetensors")
    presets.keep_for("mine", "Flux")

    def listed(model):
        return offered(presets.names(), presets.uses(), model)

    assert listed(XL) == [
        *("★ other (xl/one.safetensors)", "★ Fast (SDXL)"),
        *("Paper", "Gentle", "Strong", "Clean", "mine"),
    ]
    assert listed(FLUX) == ["★ mine (Flux)", *PRESETS, "other"]
    assert listed(Model("SDXL", "xl/three.safetensors"))[:2] == ["★ Fast (SDXL)", "Paper"]
    for nothing in (Model(), Model("SD1.5", "one.safetensors")):
        assert listed(nothing) == presets.names() == [*PRESETS, "mine", "other"]
    for model in (XL, FLUX, Model()):
        assert sorted(plain(text, presets.names(), presets.uses()) for text in listed(model)) == sorted(presets.names())


def test_what_the_list_said_before_another_model_was_chosen_is_still_understood(presets):
    presets.keep_for("mine", "SDXL")
    assert plain("★ mine (SDXL)", presets.names(), presets.uses()) == "mine"
    assert plain("★ gone (SDXL)", presets.names(), presets.uses()) == "★ gone (SDXL)"
    # A preset that is really called so is itself.
    presets.save("★ mine (SDXL)", MINE)
    assert plain("★ mine (SDXL)", presets.names(), presets.uses()) == "★ mine (SDXL)"


def test_the_file_holds_it_beside_the_presets(presets):
    presets.keep_for("mine", "SDXL")
    presets.keep_for("Fast", "two.gguf")
    presets.keep_for("mine", "SD3")
    assert written(presets) == {"mine": {"scale": 2.25}, KEY: {"Fast": "two.gguf", "mine": "SD3"}}
    assert presets.names() == [*PRESETS, "mine"]
    assert presets.notice == ""
    # Without any it is a file of earlier versions again.
    for name in ("mine", "Fast"):
        presets.keep_for(name, ANY)
    assert written(presets) == {"mine": {"scale": 2.25}}


def test_renamed_saved_again_and_deleted(presets):
    presets.keep_for("mine", "SDXL")
    presets.rename("mine", "ours")
    presets.save("ours", AsagSettings(scale=3.0))
    assert presets.uses() == {"ours": "SDXL"}
    presets.delete("ours")
    assert written(presets) == {}


def test_a_version_that_does_not_know_it_keeps_the_presets(presets):
    """Such a version refuses names with a colon, and leaves what it can't use as it stands."""
    presets.keep_for("mine", "SDXL")
    with pytest.raises(PresetError, match="without a colon"):
        presets.save(KEY, MINE)
    assert {name: each for name, each in written(presets).items() if ":" not in name} == {"mine": {"scale": 2.25}}


@pytest.mark.parametrize("name", ["gone", "Custom", KEY, ""])
def test_only_for_presets_that_there_are(presets, name):
    before = written(presets)
    with pytest.raises(PresetError, match="allowed: Paper, Gentle, Strong, Clean, Fast, mine"):
        presets.keep_for(name, "SDXL")
    assert written(presets) == before


@pytest.mark.parametrize("kept", [3, [], "SDXL", None])
def test_an_entry_that_cannot_be_used_stays_and_is_told(presets, kept):
    presets.file.path.write_text(json.dumps({"mine": {"scale": 2.25}, KEY: kept}))
    assert presets.uses() == {}
    assert presets.names() == [*PRESETS, "mine"]
    assert "':use for' (" in presets.notice
    with pytest.raises(PresetError, match=r"':use for' in the file: .*; allowed: an object of presets and models"):
        presets.keep_for("mine", "SDXL")
    presets.save("other", MINE)
    presets.rename("other", "another")
    presets.delete("another")
    assert written(presets) == {"mine": {"scale": 2.25}, KEY: kept}


def test_parts_of_the_entry_that_cannot_be_used_do_not_count(presets):
    presets.file.path.write_text(
        json.dumps({"mine": {"scale": 2.25}, KEY: {"mine": "SDXL", "Fast": 3, "gone": "Flux"}})
    )
    assert offered(presets.names(), presets.uses(), XL)[0] == "★ mine (SDXL)"
    assert offered(presets.names(), presets.uses(), FLUX) == presets.names()
