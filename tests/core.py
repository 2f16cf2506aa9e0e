"""Which tests concern a WebUI and need only what one has: those that `pytest --core` runs (see noxfile.py)."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What every WebUI has, and what tests are written with. `ldm` is the package whose UNet AUTOMATIC1111 runs. The modules
# of a WebUI itself are doubles in these tests.
CORE = {
    "torch",
    "numpy",
    "einops",
    "safetensors",
    "matplotlib",
    "PIL",
    "fastapi",
    "filelock",
    "gradio",
    "ldm",
    "modules",
}
WRITTEN_WITH = {"pytest", "hypothesis", "ot"}
# Folders of tests: of what no WebUI runs, and of an installed WebUI.
ELSEWHERE = {"lab", "mutation", "research", "webui"}


def imported(path: Path) -> Iterator[str]:
    """The dotted names that a file imports, with those inside functions and those that it skips without."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("importorskip"):
            yield ast.literal_eval(node.args[0])


def file_of(name: str) -> Path | None:
    """The repository's file of a dotted name."""
    path = ROOT.joinpath(*name.split("."))
    return next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.exists()), None)


@cache
def direct(path: Path) -> tuple[frozenset[Path], frozenset[str]]:
    """The repository's files and the packages that a file imports."""
    names = list(imported(path))
    files = {file for name in names if (file := file_of(name))}
    tops = {name.split(".")[0] for name in names}
    return frozenset(files), frozenset(tops - set(sys.stdlib_module_names) - {"asag", "tests", "research"})


def packages(path: Path) -> set[str]:
    """All packages that a file needs, through the files that it imports."""
    needed: set[str] = set()
    reached, waiting = set(), [path]
    while waiting:
        file = waiting.pop()
        if file not in reached:
            reached.add(file)
            files, found = direct(file)
            waiting += files
            needed |= found
    return needed


def is_core(path: Path) -> bool:
    """Whether a file or folder of tests is among them."""
    if ELSEWHERE & set(path.relative_to(ROOT).parts):
        return False
    return not (path.name.startswith("test_") and path.suffix == ".py") or packages(path) <= CORE | WRITTEN_WITH
