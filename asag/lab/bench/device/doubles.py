"""The part "doubles": the project's tests of adapters and models with their tensors on the device, a line a file."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from asag.lab.bench.device.lines import Line, NothingToMeasure

ROOT = Path(__file__).parents[4]
VARIABLE = "ASAG_TEST_DEVICE"
PLACES = ("hosts", "models", "test_branch.py", "test_guidance.py", "test_operators.py", "test_device_scores.py")
QUICK_PLACES = ("test_echo.py",)
SECONDS_A_TEST = 60


class Counter:
    """A plugin of pytest: counts what passed, and keeps what failed with the last line of the reason."""

    def __init__(self) -> None:
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}
        self.failed: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
        if report.outcome == "failed":
            self.failed[report.nodeid] = last_line(report.longreprtext)

    def pytest_collectreport(self, report: Any) -> None:
        if report.outcome == "failed":
            self.counts["failed"] += 1
            self.failed[report.nodeid] = last_line(report.longreprtext)


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
    os.environ[VARIABLE] = str(device)
    for file in files:
        yield tested(file)


def tested(file: Path) -> Line:
    import pytest

    counter = Counter()
    options = ["-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", "-o", f"timeout={SECONDS_A_TEST}"]
    pytest.main([*options, "--rootdir", str(ROOT), str(file)], plugins=[counter])
    line: Line = {"case": str(file.relative_to(ROOT)), "ok": not counter.failed} | counter.counts
    return line | ({"failures": counter.failed} if counter.failed else {})
