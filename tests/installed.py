"""Doubles of packages that aren't installed here, such as a host's or gradio, and ASAG imported anew with them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

ASAG = Path(__file__).parents[1] / "asag"


@cache
def _imports() -> dict[str, set[str]]:
    """What each module of ASAG imports when it is imported itself."""
    found: dict[str, set[str]] = {}
    for path in ASAG.rglob("*.py"):
        name = ".".join(path.relative_to(ASAG.parent).with_suffix("").parts).removesuffix(".__init__")
        found[name] = names = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                names.update(f"{node.module}.{each.name}" for each in node.names)
                names.add(str(node.module))
            elif isinstance(node, ast.Import):
                names.update(each.name for each in node.names)
    return found


@cache
def importers(package: str) -> frozenset[str]:
    """The modules of ASAG that import this package as soon as they are imported, themselves or through others."""
    found = {name for name, names in _imports().items() if any(each.split(".")[0] == package for each in names)}
    while more := {name for name, names in _imports().items() if names & found} - found:
        found |= more
    return frozenset(found)


@contextmanager
def installed(doubles: Mapping[str, ModuleType | None]) -> Iterator[None]:
    """While open, an import gives these doubles (None: an ImportError), and ASAG's modules that import them are
    imported anew; a double of one of ASAG's own modules only stands in its place. Afterwards every module is what it
    was: one that kept a double would make another test fail."""
    packages = {name.split(".")[0] for name in doubles} - {"asag"}
    own = frozenset[str]().union(*map(importers, packages))
    with pytest.MonkeyPatch.context() as patch:
        for name in own:
            package, _, last = name.rpartition(".")
            # `from package import module` takes what stands in the package first.
            for places, key in ((sys.modules, name), (vars(import_module(package)), last)):
                patch.setitem(places, key, None)  # the end of the context undoes it, whatever stands there then
                del places[key]
        for name, double in doubles.items():
            patch.setitem(sys.modules, name, double)
        yield
