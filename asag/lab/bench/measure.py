"""Measuring: interleaved rounds, paired ratios with their spread, peak memory, and on what machine it was."""

from __future__ import annotations

import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import asag

# What takes less is repeated until it takes this long, or the clock and the interpreter would be what is measured.
SHORTEST_SECONDS = 0.02
FEWEST_PAIRS = 3
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
# The device's own clock, which doesn't see what the host does before the first and after the last kernel.
EVENTS = "events"
MIB = 2**20


@dataclass(frozen=True)
class Variant:
    """Something to be timed: `run` does `steps` steps. What `context` opens and closes is outside of the timing."""

    run: Callable[[], Any]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    steps: int = 1


@dataclass(frozen=True)
class Meter:
    """How to measure: on which device, how many rounds, and how many seconds of one case are enough."""

    device: torch.device
    pairs: int
    seconds: float = math.inf
    clock: str = "wall"  # of CLOCKS, or on CUDA EVENTS

    def rounds(self, variants: Mapping[str, Variant]) -> dict[str, list[float]]:
        """Seconds per step of each variant, in rounds A B C A B C: what slows the machine down slows all of a round.

        Ends after `pairs` rounds, or after FEWEST_PAIRS when the case has taken `seconds`.
        """
        calls = {name: self.warm_up(variant) for name, variant in variants.items()}
        times: dict[str, list[float]] = {name: [] for name in variants}
        started = time.monotonic()
        for done in range(self.pairs):
            if done >= FEWEST_PAIRS and time.monotonic() - started > self.seconds:
                break
            for name, variant in variants.items():
                times[name].append(self.time(variant, calls[name]))
        return times

    def warm_up(self, variant: Variant) -> int:
        """How often to call a variant in one timing."""
        spent = self.time(variant, 1) * variant.steps
        if spent < SHORTEST_SECONDS:
            spent = self.time(variant, 3) * variant.steps
        return math.ceil(SHORTEST_SECONDS / max(spent, 1e-6))

    def time(self, variant: Variant, calls: int) -> float:
        with torch.no_grad(), variant.context():
            self.synchronize()
            passed = self.started()
            for _ in range(calls):
                variant.run()
            return passed() / (calls * variant.steps)

    def started(self) -> Callable[[], float]:
        """Start the clock; what is returned waits for the device and says how many seconds passed."""
        if self.clock == EVENTS:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()

            def by_events() -> float:
                end.record()
                end.synchronize()
                return float(begin.elapsed_time(end)) / 1000

            return by_events
        clock = CLOCKS[self.clock]
        before = clock()

        def by_clock() -> float:
            self.synchronize()
            return clock() - before

        return by_clock

    def synchronize(self) -> None:
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()

    def peak_bytes(self, variant: Variant) -> int:
        """The most that one run had allocated at once beyond what was there before.

        On a CPU from torch.profiler, which sees every tensor and the scratch space of torch's kernels, but not what
        a BLAS keeps for itself. On CUDA from the allocator.
        """
        with torch.no_grad(), variant.context():
            if self.device.type == "cuda":
                before = torch.cuda.memory_allocated(self.device)
                torch.cuda.reset_peak_memory_stats(self.device)
                variant.run()
                return torch.cuda.max_memory_allocated(self.device) - before
            os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # two lines on stderr for each profile, otherwise
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
                variant.run()
        events = (event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]")
        held = peak = 0
        for _, change in sorted((event.start_ns(), event.nbytes()) for event in events):
            held += change
            peak = max(peak, held)
        return peak


def ratio(times: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """Median and interquartile range of the paired ratios."""
    quotients = [one / other for one, other in zip(times, base, strict=True)]
    low, middle, high = statistics.quantiles(quotients, n=4, method="inclusive")
    return middle, high - low


def share(times: Sequence[float], full: Sequence[float], base: Sequence[float]) -> float | None:
    """Of what `full` costs beyond `base`, the part that `times` costs beyond it; None where noise hides that.

    From the median ratios, and not the median of shares: in a noisy round what a share is taken of comes near 0.
    """
    whole = ratio(full, base)[0] - 1
    return round((ratio(times, base)[0] - 1) / whole, 4) if whole > 0.01 else None


def record(bench: str, case: str, variant: str, times: Mapping[str, Sequence[float]], base: str) -> dict[str, Any]:
    """One line of JSON: a variant's paired ratio to the variant `base`, which "ratio_to_..." is called after."""
    middle, spread = ratio(times[variant], times[base])
    return {
        "bench": bench,
        "case": case,
        "variant": variant,
        f"ratio_to_{base}": round(middle, 4),
        "spread": round(spread, 4),
        "pairs": len(times[variant]),
        "seconds": float(f"{statistics.median(times[variant]):.4g}"),
    }


def machine(device: torch.device, threads: int, clock: str) -> dict[str, Any]:
    """What a figure depends on besides the code."""
    facts: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": threads,
        "clock": clock,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": version_of("diffusers"),
        "asag": asag.__version__ + commit(),
    }
    if hasattr(os, "getloadavg"):
        facts["load before"] = round(os.getloadavg()[0], 2)
    return facts


def version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def commit() -> str:
    """ " (commit 1a2b3c4)" of the checkout that runs, if it is one."""
    command = ["git", "-C", str(Path(asag.__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return f" (commit {subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True).strip()})"
    except (OSError, subprocess.CalledProcessError):
        return ""
