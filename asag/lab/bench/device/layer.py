"""One layer for a profiler from outside (asag.lab.bench.device.counters): what is profiled stands between
cudaProfilerStart and cudaProfilerStop."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from asag.lab.bench.device.accuracy import attended, scaled, tensors_of
from asag.lab.bench.device.lines import Line
from asag.lab.bench.shapes import OPERATORS, QUICK_OPERATORS
from asag.operators import make_operator

LARGEST_LOGIT = 10.0


def lines(device: torch.device, quick: bool) -> Iterator[Line]:
    case = QUICK_OPERATORS[0] if quick else next(each for each in OPERATORS if each.name == "sdxl-mid-1024")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    given, operator = scaled(tensors_of(case), LARGEST_LOGIT, device, dtype), make_operator("asag")
    for _ in range(3):
        attended(operator, given, case)
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        attended(operator, given, case)
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
    yield {"case": case.name}
