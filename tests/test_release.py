"""What a release says of itself: one version, the changelog, and the entry for the WebUIs' index of extensions."""

from __future__ import annotations

import configparser
import datetime
import json
import re
from pathlib import Path

from asag import __version__
from asag.webui import about

ROOT = Path(__file__).parents[1]
# tags.json of AUTOMATIC1111/stable-diffusion-webui-extensions, November 2026, without those that don't fit an extension
# that needs no network and shows no advertisement: ads, online; and without installed, which WebUIs set.
TAGS = {
    *("script", "localization", "tab", "dropdown", "training", "models", "UI related", "prompting", "editing"),
    *("manipulations", "animation", "query", "science", "extras"),
}


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_said_in_one_place() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    pyproject = text("pyproject.toml")
    assert 'dynamic = ["version"]' in pyproject
    assert 'version = { attr = "asag.__version__" }' in pyproject
    assert f'title="Version {__version__}"' in about.line({})


def test_the_changelog_has_what_is_unreleased_first_and_then_this_version() -> None:
    headings = re.findall(r"^## (.+)$", text("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    versions = [re.fullmatch(r"(\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)", heading) for heading in headings[1:]]
    assert all(versions), headings
    found = [(version[1], datetime.date.fromisoformat(version[2])) for version in versions if version]
    assert found[0][0] == __version__
    assert found == sorted(found, key=lambda release: [int(part) for part in release[0].split(".")], reverse=True)
    assert [day for _, day in found] == sorted((day for _, day in found), reverse=True)


def test_the_entry_for_the_index_of_extensions() -> None:
    entry = json.loads(text("extension-index.json"))
    # The index adds the day by itself.
    assert list(entry) == ["name", "url", "description", "tags"]
    metadata = configparser.ConfigParser()
    metadata.read_string(text("metadata.ini"))
    assert entry["name"].lower() == metadata["Extension"]["Name"]
    folder = re.search(r"`extensions/([\w-]+)`", text("README.md"))
    assert folder, "README: which folder to delete"
    assert re.fullmatch(rf"https://github\.com/[\w.-]+/{folder[1]}\.git", entry["url"])
    assert f'name = "{folder[1]}"' in text("pyproject.toml")
    assert set(entry["tags"]) <= TAGS
    assert len(set(entry["tags"])) == len(entry["tags"]) > 0
    assert len(entry["description"]) <= 250
    assert entry["description"].isascii()
    assert "arXiv:2511.07499" in entry["description"]
