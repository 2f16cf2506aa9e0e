"""The process of one part: `python -m asag.lab.bench.device.part NAME DEVICE quick|full FILE`."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from asag.kernel_choice import is_lost
from asag.lab.bench.device.lines import Line, NothingToMeasure

CPU = torch.device("cpu")
Measure = Callable[[torch.device, bool], Iterator[Line]]
# Modules of this package, each with a function `lines`.
NAMES = ("card", "accuracy", "steps", "branch", "times", "doubles", "kernels", "counters", "layer")


def write(measured: Iterator[Line], path: Path, device: torch.device = CPU) -> int:
    """Write the lines as they come, so that they stay when the process is stopped. Returns the exit status, 1 where a
    check failed. Stops at a check that broke the device: all after it would fail through no fault of theirs."""
    failed = total = 0
    with path.open("w") as file:
        for line in measured:
            file.write(json.dumps(line) + "\n")
            file.flush()
            print(json.dumps(line), flush=True)
            total += "ok" in line
            failed += line.get("ok") is False
            if line.get("ok") is False and is_lost(device):
                place = ", ".join(str(line[name]) for name in ("case", "dtype", "way") if name in line)
                print(f"the device was broken by {place}; what comes after it wasn't run")
                return 1
    if failed:
        print(f"{failed} of {total} checks failed")
    return 1 if failed else 0


def main(argv: list[str]) -> int:
    name, device, size, path = argv
    if name not in NAMES:
        raise ValueError(f"part: {name!r}; allowed: {', '.join(NAMES)}")
    try:
        measure: Measure = importlib.import_module(f"asag.lab.bench.device.{name}").lines
        return write(measure(torch.device(device), size == "quick"), Path(path), torch.device(device))
    except ModuleNotFoundError as error:
        print(f"the package {(error.name or '').partition('.')[0]} is missing")
    except NothingToMeasure as error:
        print(error)
    return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
