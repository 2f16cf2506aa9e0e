"""The part "counters": NVIDIA's profilers on one layer, where they are installed: ncu, else nsys."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from asag.lab.bench.device.lines import Line, NothingToMeasure

METRICS = {
    "gpu__time_duration.sum": "time",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "arithmetic, % of peak",
    "gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed": "memory, % of peak",
    "dram__bytes.sum": "bytes from and to memory",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy, %",
    "launch__registers_per_thread": "registers",
}
SECONDS = 80
LONGEST_REPORT = 6000


def lines(device: torch.device, quick: bool) -> Iterator[Line]:
    """Raises NothingToMeasure where the profiler fails, with what it said."""
    if tool := shutil.which("ncu"):
        yield from by_ncu(tool, device, quick)
    elif tool := shutil.which("nsys"):
        yield from by_nsys(tool, device, quick)
    else:
        yield {"skipped": "neither ncu nor nsys is installed"}


def layer(device: torch.device, quick: bool, folder: str) -> list[str]:
    size = "quick" if quick else "full"
    return [sys.executable, "-m", "asag.lab.bench.device.part", "layer", str(device), size, f"{folder}/layer.jsonl"]


def output_of(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        told = [line for line in (done.stdout + done.stderr).splitlines() if "ERR" in line or "rror" in line]
        raise NothingToMeasure(f"{Path(command[0]).name} ended with {done.returncode}: {(told or [''])[-1][:300]}")
    return done.stdout


def by_ncu(tool: str, device: torch.device, quick: bool) -> Iterator[Line]:
    """A line a kernel."""
    options = ["--csv", "--profile-from-start", "off", "--metrics", ",".join(METRICS)]
    with tempfile.TemporaryDirectory() as folder:
        text = output_of([tool, *options, *layer(device, quick, folder)])
    yield from kernels_of(text)


def kernels_of(text: str) -> list[Line]:
    """ncu's table has a row for each kernel and metric; lines before it are of the program."""
    rows = text.splitlines()
    head = next((number for number, row in enumerate(rows) if row.startswith('"ID"')), len(rows))
    found: dict[str, Line] = {}
    for row in csv.DictReader(rows[head:]):
        line = found.setdefault(row["ID"], {"kernel": row["Kernel Name"][:90]})
        name = METRICS.get(row["Metric Name"], row["Metric Name"])
        line[name] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return list(found.values())


def by_nsys(tool: str, device: torch.device, quick: bool) -> Iterator[Line]:
    """One line, with nsys's own tables as text."""
    with tempfile.TemporaryDirectory() as folder:
        options = [
            "profile",
            "--trace=cuda",
            "--capture-range=cudaProfilerApi",
            "--stats=true",
            "-o",
            f"{folder}/layer",
        ]
        yield {"report": output_of([tool, *options, *layer(device, quick, folder)])[-LONGEST_REPORT:]}
