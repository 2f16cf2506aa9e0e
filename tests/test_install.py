"""install.py, as a WebUI runs it: a script of its own at every start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

INSTALL = Path(__file__).parent.parent / "install.py"


def run(*flags: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, *flags, str(INSTALL)], cwd=cwd, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def test_what_is_there_is_not_mentioned(tmp_path):
    assert "torch" not in run(cwd=tmp_path)
    assert "matplotlib" not in run(cwd=tmp_path)


def test_what_is_missing_is_told_in_a_line_each(tmp_path):
    # -I -S: no site-packages, so nothing is there.
    lines = run("-I", "-S", cwd=tmp_path).splitlines()
    assert lines == [
        "ASAG: guidance needs torch, which isn't there; pip install torch would bring it",
        "ASAG: the accordion needs gradio, which isn't there; pip install gradio would bring it",
        "ASAG: drawing figures needs matplotlib, which isn't there; pip install matplotlib would bring it",
    ]
