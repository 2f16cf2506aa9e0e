"""What holds for every test."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.core import is_core
from tests.installed import importers
from tests.on_device import VARIABLE, OnDevice

# A busy machine is no fault of what is tested; pytest's own time limit ends what hangs.
settings.register_profile("asag", deadline=None)
settings.register_profile("fuzz", deadline=None, max_examples=10_000)
settings.load_profile("asag")


ON_DEVICE = OnDevice(os.environ[VARIABLE]) if VARIABLE in os.environ else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--core", action="store_true", help="only the tests that need nothing but what a WebUI has")
    parser.addoption("--one-in", type=int, default=1, help="run every n-th test, of all files, where time is short")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if config.getoption("--core") and not is_core(collection_path) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items[:] = items[:: config.getoption("--one-in")]


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module makes its tensors."""
    config.addinivalue_line("markers", "fuzz: the test makes up its input; make fuzz makes up more of it")
    if ON_DEVICE:
        ON_DEVICE.__enter__()


def pytest_unconfigure() -> None:
    if ON_DEVICE:
        ON_DEVICE.__exit__(None, None, None)


@pytest.fixture
def double() -> Iterator[None]:
    """Tensors and models are float64: a deep network with random weights makes much of rounding, which differs from
    processor to processor and with the batch."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def no_double_left() -> Iterator[None]:
    """A module of ASAG that a test imported with a host's doubles would be the next test's: see tests/installed.py."""
    yield
    assert "modules" in sys.modules or not importers("modules") & sys.modules.keys()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not os.environ.get("ASAG_WEBUI"):
        terminalreporter.write_line(
            "Not run: tests/webui. It needs an installed AUTOMATIC1111, Forge, reForge or Neo (make test-webui)."
        )
