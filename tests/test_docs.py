"""The pages: their links lead somewhere, each option has its section, and the README stays short."""

import re
from pathlib import Path

import pytest

from asag.settings import options

ROOT = Path(__file__).parent.parent
PAGES = [
    page
    for folder in (ROOT, ROOT / "docs", ROOT / "research", ROOT / "asag" / "lab" / "embedded", ROOT / "bench")
    for page in (folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files_that_are_there(page):
    links = [link for link in LINK.findall(page.read_text()) if not link.startswith(("http://", "https://"))]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("name", options())
def test_each_option_is_documented(name):
    assert f"`{name}`" in (ROOT / "docs" / "options.md").read_text()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
