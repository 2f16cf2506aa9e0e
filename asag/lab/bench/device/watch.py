"""What happens while something runs: lines that are logged, and how often the host waits for the device. And in which
precision it runs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from asag.precision import float32_setting

SYNCHRONIZING = "synchronizing CUDA operation"


class Kept(logging.Handler):
    """Keeps the texts of what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextmanager
def told(logger: str) -> Iterator[list[str]]:
    """The warnings that a logger gets while this is open."""
    kept, found = Kept(), logging.getLogger(logger)
    found.addHandler(kept)
    try:
        yield kept.texts
    finally:
        found.removeHandler(kept)


def waits_of(device: torch.device, run: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """How often the host waits for a CUDA device while `run` runs, as torch tells it, and the result."""
    if device.type != "cuda":
        return 0, run()
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            result = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum(SYNCHRONIZING in str(each.message) for each in found), result


@contextmanager
def exact_float32() -> Iterator[None]:
    """float32 in convolutions and products, not TF32."""
    places = (torch.backends.cudnn, torch.backends.cuda.matmul)
    settings: list[tuple[Any, str, Any]] = []
    for place in places:
        owner = getattr(place, "conv", place)
        name, full = float32_setting(owner)
        settings.append((owner, name, getattr(owner, name)))
        setattr(owner, name, full)
    try:
        yield
    finally:
        for owner, name, before in settings:
            setattr(owner, name, before)
