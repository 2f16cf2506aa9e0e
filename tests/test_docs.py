"""The pages: their links lead somewhere, each option has its section, and the README stays short."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from asag.__main__ import COMMANDS
from asag.settings import options

ROOT = Path(__file__).parent.parent
PAGES = [
    page
    for folder in (ROOT, ROOT / "docs", ROOT / "research", ROOT / "asag" / "lab" / "embedded", ROOT / "bench")
    for page in (folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
]
OPTIONS = (ROOT / "docs" / "options.md").read_text()
# At the start of a line or of code.
COMMAND = re.compile(r"(?:^|`)(make|python -m asag) ([a-z-]+)", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files_that_are_there(page):
    links = [link for link in LINK.findall(page.read_text()) if not link.startswith(("http://", "https://"))]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("name", options())
def test_each_option_is_documented(name):
    assert f"`{name}`" in OPTIONS


def shown_default(value):
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def test_the_table_of_options_has_the_defaults_and_bounds_of_the_settings():
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (.+?) \| (.+?) \|$", OPTIONS, re.MULTILINE)
    found = {}
    for names, defaults, allowed in rows:
        named = re.findall(r"\w+", names)
        if set(named) <= set(options()):
            found |= {name: (default, allowed) for name, default in zip(named, defaults.split(", "), strict=True)}
    assert found.keys() == options().keys()
    for name, (field, option) in options().items():
        default, allowed = found[name]
        assert default == shown_default(field.default)
        if option.choices:
            assert allowed == ", ".join(option.choices)
        if option.maximum is not None:
            assert allowed.startswith(f"{option.minimum:g} to {option.maximum:g}")
        if option.slider_maximum is not None:
            assert f"(slider to {option.slider_maximum:g}" in allowed


def test_the_example_of_a_translation_has_texts_of_the_page():
    example = re.search(r"```json\n(.+?)```", (ROOT / "docs" / "developers.md").read_text(), re.DOTALL)
    shown = {text for _, option in options().values() for text in (option.label, option.help)}
    script = (ROOT / "javascript" / "asag.js").read_text()
    assert [text for text in json.loads(example[1]) if text not in shown and f'"{text}"' not in script] == []


def test_what_the_page_for_developers_names_is_there():
    page = (ROOT / "docs" / "developers.md").read_text()
    named = set(re.findall(r"`(?:asag\.)?((?:hosts|models)\.[a-z0-9_]+)\.([A-Za-z_0-9]+)", page))
    missing = [
        f"{module}.{name}"
        for module, name in sorted(named)
        if not re.search(rf"(class|def) {name}\b", (ROOT / "asag" / f"{module.replace('.', '/')}.py").read_text())
    ]
    assert named
    assert missing == []
    files = set(re.findall(r"\b[a-z_]+(?:/[a-z_]+)*\.(?:py|js|css|sh)\b", page))
    known = [
        str(path.relative_to(ROOT))
        for folder in ("asag", "bench", "tests", "scripts", "javascript")
        for path in (ROOT / folder).rglob("*.*")
    ]
    assert [
        file
        for file in sorted(files)
        if not any(f"/{each}".endswith(f"/{file}") for each in [*known, "style.css", "launch.py"])
    ] == []


def test_the_commands_that_pages_name_are_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[1].split()
    named = [command for page in PAGES for command in COMMAND.findall(page.read_text(encoding="utf-8"))]
    assert ("make", "demo") in named
    assert ("python -m asag", "bench") in named
    known = {"make": targets, "python -m asag": COMMANDS}
    assert [command for command in named if command[1] not in known[command[0]]] == []


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
def test_the_folder_of_a_webui_may_have_blanks_in_its_name(tmp_path):
    folder = tmp_path / "sd webui Größe"
    command = ["make", "--dry-run", "test-webui", f"WEBUI={folder}"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout
    assert f'ASAG_WEBUI="{folder}"' in told


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
