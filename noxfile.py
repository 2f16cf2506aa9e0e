"""The core tests in the versions that WebUIs pin, and in the newest: `make versions`, or `nox -s core-newest` for one.

What comes after `--` goes to pytest. Each session has an environment of its own under .nox. Without its Python it is
skipped. TORCH_ARGS are pip's options for torch, as in the Makefile.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import nox

sys.path.insert(0, str(Path(__file__).parent))
from tests.versions import COMBINATIONS, PACKAGES, TESTS, WITHOUT_DEPENDENCIES, Versions

nox.options.error_on_missing_interpreters = False


def add_session(name: str, versions: Versions) -> None:
    @nox.session(name=f"core-{name}", python=versions.python)
    def core(session: nox.Session) -> None:
        constraints = ["--constraint", versions.constraints] if versions.constraints else []
        torch_args = shlex.split(os.environ.get("TORCH_ARGS", ""))
        session.install(*torch_args, *constraints, *versions.packages, *PACKAGES)
        session.install(*constraints, *versions.packages, *TESTS)
        session.install("--no-deps", *WITHOUT_DEPENDENCIES)
        session.run("python", "-m", "pytest", "tests", "--core", *session.posargs, env={"OMP_NUM_THREADS": "1"})


for name, versions in COMBINATIONS.items():
    add_session(name, versions)
