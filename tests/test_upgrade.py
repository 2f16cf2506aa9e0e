"""What earlier revisions wrote is read as the same settings, and so gives the same pictures.

Each file of tests/upgrade was written by the code of the revision that it names, all of version 0.1.0: the settings of
some pictures as far as they weren't that revision's defaults; the infotext of each, its line as a shared preset and its
values in the page's order; and the file of presets that holds them all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asag.presets import Presets, read_shared
from asag.settings import AsagSettings, SettingsError, options
from asag.webui import api, infotext

FILES = sorted((Path(__file__).parent / "upgrade").glob("*.json"))
REVISIONS = [json.loads(file.read_text(encoding="utf-8")) for file in FILES]
PICTURES = [
    pytest.param(picture, revision["names"], id=f"{file.stem}-{number}")
    for file, revision in zip(FILES, REVISIONS, strict=True)
    for number, picture in enumerate(revision["pictures"])
]
# The page's order before `contrast` came in between: values of that time end with what an error names.
FIRST_TEN = ["enabled", "scale", "blocks", "iterations", "strength", "method", "start", "end", "schedule", "rescale"]


def today(settings: dict[str, Any]) -> AsagSettings:
    """Settings of an earlier revision, written out; what it hadn't is at today's default."""
    unit = {True: {"unit": "push"}, False: {"unit": "paper"}, None: {}}[settings.get("adaptive")]
    return AsagSettings(**{name: value for name, value in settings.items() if name != "adaptive"}, **unit)


def test_the_revisions_are_from_the_first_one_with_hires_to_the_first_one_with_units() -> None:
    assert len(REVISIONS) == 8
    assert ("adaptive" in REVISIONS[0]["names"], "unit" in REVISIONS[-1]["names"]) == (True, True)
    assert set().union(*(each["names"] for each in REVISIONS)) - {"adaptive"} <= set(options())


@pytest.mark.parametrize(("picture", "names"), PICTURES)
def test_infotexts_and_api_payloads(picture: dict[str, Any], names: list[str]) -> None:
    expected = today(picture["settings"])
    assert infotext.read({infotext.KEY: picture["infotext"]}) == expected
    assert api.read_args([picture["settings"]]) == expected
    assert api.read_args([dict(zip(names, picture["values"], strict=True))]) == expected


@pytest.mark.parametrize(("picture", "names"), PICTURES)
def test_values_in_the_pages_order(picture: dict[str, Any], names: list[str]) -> None:
    values = picture["values"]
    if [{"adaptive": "unit"}.get(name, name) for name in names] == list(options())[: len(names)]:
        assert api.read_args(values) == today(picture["settings"])
        return
    assert names[:11] == [*FIRST_TEN, "adaptive"]
    with pytest.raises(SettingsError, match=r"contrast: (True|False); allowed: a number"):
        api.read_args(values)
    first = {name: value for name, value in picture["settings"].items() if name in FIRST_TEN}
    assert api.read_args(values[:10]) == today(first)


@pytest.mark.parametrize("revision", [each for each in REVISIONS if "presets" in each], ids=lambda each: each["commit"])
def test_files_of_presets_and_shared_lines(revision: dict[str, Any], tmp_path: Path) -> None:
    presets = Presets(tmp_path / "presets.json")
    presets.file.path.write_text(json.dumps(revision["presets"]), encoding="utf-8")
    assert presets.names()[5:] == list(revision["presets"])
    assert presets.notice == ""
    for number, picture in enumerate(revision["pictures"]):
        expected = today({**picture["settings"], "enabled": False})
        assert presets.get(f"preset {number}") == expected
        assert read_shared(picture["shared"]) == (f"preset {number}", expected)


def test_what_no_longer_means_the_same_is_in_the_changelog() -> None:
    changelog = (Path(__file__).parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "`d4` was `in.4`; in SD1.5 it is now `in.7`." in changelog
    assert "`rescale` acts on the predicted picture with every sampler." in changelog
