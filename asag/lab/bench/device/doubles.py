"""The part "doubles": the project's tests of adapters and models with their tensors on the device, a line a file.

Each file is run by a process of its own, several at a time: one that breaks the device breaks it for no other.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from asag.lab.bench.device.lines import Line, NothingToMeasure
from asag.lab.bench.device.run import ended_by

ROOT = Path(__file__).parents[4]
VARIABLE = "ASAG_TEST_DEVICE"
PLACES = ("hosts", "models", "test_branch.py", "test_guidance.py", "test_operators.py", "test_device_scores.py")
QUICK_PLACES = ("test_echo.py",)
SECONDS_A_TEST = 60
# At a time: each has about half a gigabyte on the device, and takes a core or two.
MOST_PROCESSES, CORES_EACH = 8, 2
MISSING = re.compile(r"ModuleNotFoundError: No module named '(\w+)")
OURS = {"asag", "tests"}


class Counter:
    """A plugin of pytest: counts what passed, and keeps what failed with the last line of the reason, and the packages
    that tests lacked."""

    def __init__(self) -> None:
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}
        self.failed: dict[str, str] = {}
        self.missing: set[str] = set()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.outcome == "failed":
            self.fail(report)
        elif report.when == "call" or report.outcome == "skipped":
            self.counts[report.outcome] += 1

    def pytest_collectreport(self, report: Any) -> None:
        if report.outcome == "failed":
            self.fail(report)

    def fail(self, report: Any) -> None:
        """A test or file that lacks a package is left out."""
        reason = last_line(report.longreprtext)
        found = MISSING.match(reason)
        if found and found[1] not in OURS:
            self.counts["skipped"] += 1
            self.missing.add(found[1])
        else:
            self.counts["failed"] += 1
            self.failed[report.nodeid] = reason

    def line(self) -> Line:
        if self.missing and not self.failed and not self.counts["passed"]:
            return {"skipped": f"needs {', '.join(sorted(self.missing))}"}
        found: Line = {"ok": not self.failed} | self.counts
        found |= {"missing": sorted(self.missing)} if self.missing else {}
        return found | ({"failures": self.failed} if self.failed else {})


def last_line(text: str) -> str:
    """Of a traceback the line with the error."""
    marked = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return (marked or text.splitlines() or [""])[0][:300]


def files_of(places: tuple[str, ...]) -> list[Path]:
    """The test files of some places in the folder tests."""
    found = [ROOT / "tests" / place for place in places]
    return [file for each in found for file in (sorted(each.glob("test_*.py")) if each.is_dir() else [each])]


def lines(device: torch.device, quick: bool) -> Iterator[Line]:
    """Raises NothingToMeasure where pytest or the tests are missing."""
    if importlib.util.find_spec("pytest") is None:
        raise NothingToMeasure("the package pytest is missing")
    files = files_of(QUICK_PLACES if quick else PLACES)
    if not all(file.exists() for file in files):
        raise NothingToMeasure(f"{ROOT / 'tests'}: the tests are missing; needed: the whole repository")
    with ThreadPoolExecutor(min(max((os.cpu_count() or 1) // CORES_EACH, 1), MOST_PROCESSES)) as pool:
        for run in as_completed([pool.submit(line_of, file, device) for file in files]):
            line, printed = run.result()
            print(printed)
            yield line


def line_of(file: Path, device: torch.device) -> tuple[Line, str]:
    """The line of a file of tests, and what its process printed."""
    environment = os.environ | {VARIABLE: str(device), "OMP_NUM_THREADS": str(CORES_EACH)}
    command = [sys.executable, "-m", "asag.lab.bench.device.doubles", str(file)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace")
    case: Line = {"case": str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else file.name}
    if done.returncode:
        return case | {"ok": False, "problem": ended_by(done.returncode)}, done.stdout + done.stderr
    printed, _, last = done.stdout.rstrip().rpartition("\n")
    return case | json.loads(last), printed


def tested(file: Path) -> Line:
    import pytest

    counter = Counter()
    options = ["-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", "-o", f"timeout={SECONDS_A_TEST}"]
    pytest.main([*options, "--rootdir", str(ROOT), str(file)], plugins=[counter])
    return counter.line()


if __name__ == "__main__":
    print("\n" + json.dumps(tested(Path(sys.argv[1]))))
