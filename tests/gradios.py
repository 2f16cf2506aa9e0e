"""The environments with a real gradio, in which tests build the page and answer requests."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def here() -> str | None:
    """The gradio of this environment, if it has one: those of noxfile.py."""
    try:
        return f"gradio{version('gradio').split('.')[0]}"
    except PackageNotFoundError:
        return None


HERE = here()
GRADIOS = [HERE] if HERE else ["gradio4", "gradio3"]


def python_of(gradio: str) -> str:
    """The Python of an environment with that gradio: this one's, or of those that `make test` sets up."""
    if gradio == HERE:
        return sys.executable
    python = ROOT / f".venv-{gradio}" / "bin" / "python"
    if HERE or not python.exists():
        pytest.skip(f"no environment with {gradio}: make test sets it up")
    return str(python)
