"""The names of all files can be had on Windows, in a folder as deep as those of a WebUI's extensions."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Windows has 259 characters for a path; C:\Users\…\stable-diffusion-webui\extensions\sd-webui-asag\ takes about 100.
LONGEST = 140
RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(?:\..*)?", re.IGNORECASE)
# No more letters than ZIP programs of any age can write.
ALLOWED = re.compile(r"[A-Za-z0-9._+ -]*[A-Za-z0-9_+-]")


def wrong(names: list[str]) -> list[str]:
    """The names that can't be had on Windows, with the reason."""
    found, written = [], {}
    for name in names:
        parts = name.split("/")
        places = ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
        if len(name) >= LONGEST:
            found.append(f"{name}: {len(name)} characters")
        found += [f"{name}: reserved" for part in parts if RESERVED.fullmatch(part)]
        found += [f"{name}: characters" for part in parts if not ALLOWED.fullmatch(part)]
        found += [
            f"{name}: as {written[place.lower()]}" for place in places if written.get(place.lower(), place) != place
        ]
        written |= {place.lower(): place for place in places}
    return found


def test_every_file_of_the_repository() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no clone of the repository")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = listed.split("\0")[:-1]
    assert "scripts/asag.py" in names
    assert wrong(names) == []


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a/aux.py"], "reserved"),
        (["nul"], "reserved"),
        (["docs/COM1/a.md"], "reserved"),
        (["a/what?.md"], "characters"),
        (["a:b"], "characters"),
        (["a\\b"], "characters"),
        (["folder./a"], "characters"),
        (["blank "], "characters"),
        (["a\n"], "characters"),
        (["é.md"], "characters"),
        (["a/" + "b" * 138], "140 characters"),
        (["README.md", "Readme.md"], "as README.md"),
        (["Docs/a.md", "docs/b.md"], "as Docs"),
    ],
)
def test_what_windows_does_not_take_is_found(names: list[str], reason: str) -> None:
    (found,) = wrong(names)
    assert found.endswith(reason)


def test_what_it_takes_is_not() -> None:
    assert wrong(["console.py", "auxiliary/a b.c-1_2+3.tar.gz", ".gitignore", "a/" + "b" * 137, "a/b", "a/c"]) == []
