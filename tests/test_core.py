"""Which tests run in other versions (tests/core.py), and what docs/compatibility.md says of those versions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import core
from tests.core import ROOT
from tests.versions import COMBINATIONS


@pytest.mark.parametrize(
    ("path", "needs_no_more"),
    [
        ("test_sinkhorn.py", True),
        ("hosts", True),
        ("hosts/test_a1111.py", True),
        ("hosts/test_forge_arithmetic.py", True),
        ("hosts/test_diffusers.py", False),
        ("test_kernels.py", False),
        ("lab", False),
        ("lab/embedded/test_muon.py", False),
        ("webui/test_hires.py", False),
    ],
)
def test_core_tests_need_what_a_webui_has(path: str, needs_no_more: bool) -> None:
    assert (ROOT / "tests" / path).exists()
    assert core.is_core(ROOT / "tests" / path) == needs_no_more


def test_what_an_imported_file_needs_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "far.py": "transformers = pytest.importorskip('transformers')",
        "near.py": "import os, torch\nimport tests.far",
        "test_far.py": "from tests import near",
        "test_here.py": "import os, torch",
    }
    (tmp_path / "tests").mkdir()
    for name, text in files.items():
        (tmp_path / "tests" / name).write_text(text)
    monkeypatch.setattr(core, "ROOT", tmp_path)
    assert [name for name in files if core.is_core(tmp_path / "tests" / name)] == ["far.py", "near.py", "test_here.py"]


def test_the_page_says_what_was_run_of_each_combination() -> None:
    page = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .+? \| (3\.\d+) \| (\d+\.\d+\.\d+) \|", page, re.MULTILINE)
    for versions in COMBINATIONS.values():
        pinned = [package.partition("==")[2] for package in versions.packages if package.startswith("torch==")]
        assert [row for row in rows if row[0] == versions.python and row[1:] == tuple(pinned or row[1:])]
