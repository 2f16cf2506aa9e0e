"""The pinned versions can be had, together, as built packages, for every Python that the README names.

Nothing is installed: uv reads what the packages say of themselves. Skips where no registry can be reached.
"""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

find_uv_bin = pytest.importorskip("uv", reason="uv isn't installed").find_uv_bin

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
EXTRAS = ("demo", "evidence", "evaluate", "test", "dev")
# gradio 3.41.2 and 4.40.0 need versions of numpy and pillow that newer Pythons have no built packages of.
PLAYGROUNDS = {"constraints-gradio3.txt": PYTHONS[:3], "constraints-gradio4.txt": PYTHONS[:4]}
# Has no built package for Python 3.13, and needs no compiler to be built.
BUILT_HERE = "markupsafe"


COMPILE = ("pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-config")
BUILT = ("--only-binary", ":all:", "--no-binary", BUILT_HERE)

Compiled = subprocess.CompletedProcess[str]


def compiled(python: str, *given: str) -> Compiled:
    """What uv resolves for a Python, or why it can't."""
    command = [find_uv_bin(), *COMPILE, *BUILT, "--python-version", python, *given]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def cases() -> dict[str, tuple[str, ...]]:
    """What is resolved, by name: a Python and the arguments."""
    extras = [part for extra in EXTRAS for part in ("--extra", extra)]
    found = {}
    for python in PYTHONS:
        found[f"extras-{python}"] = (python, "--constraint", "constraints.txt", *extras, "pyproject.toml")
    for pins, pythons in PLAYGROUNDS.items():
        for python in pythons:
            found[f"{pins}-{python}"] = (python, "--constraint", pins, "requirements-playground.txt")
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compiled]:
    """All of them at once: nearly all of the time is waiting for the registry."""
    wanted = tmp_path_factory.mktemp("pins") / "one.in"
    wanted.write_text("filelock\n")
    reached = compiled("3.11", "--refresh", str(wanted))
    if reached.returncode:
        pytest.skip(f"no package registry can be reached: {reached.stderr.strip()[-300:]}")
    wanted_of = cases()
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(wanted_of, pool.map(lambda given: compiled(*given), wanted_of.values()), strict=True))


@pytest.mark.parametrize("case", cases())
def test_the_pins_can_be_had_together(case: str, results: dict[str, Compiled]) -> None:
    assert results[case].returncode == 0, results[case].stderr


def test_the_readme_names_these_pythons() -> None:
    text = (ROOT / "README.md").read_text()
    named = re.search(r"Python (3\.\d+) to (3\.\d+) \(the playground: (3\.\d+) or older\)", text)
    assert named, "README: how to try it without a WebUI"
    assert named.groups() == (PYTHONS[0], PYTHONS[-1], PLAYGROUNDS["constraints-gradio4.txt"][-1])
