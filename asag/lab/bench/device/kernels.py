"""The part "kernels": which kernels a layer and a guided step launch, how many, and how long they run, by
torch.profiler. On a CPU its operations are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from asag.hosts.diffusers_pipeline import asag_guidance
from asag.lab.bench.device.accuracy import attended, scaled, tensors_of
from asag.lab.bench.device.lines import Line
from asag.lab.bench.shapes import QUICK_STEPS, StepCase, operators
from asag.lab.bench.step_model import step_model
from asag.operators import make_operator

LARGEST_LOGIT = 10.0
STEP_CASES = (StepCase("sd15", 64, 64), StepCase("sdxl", 128, 128))
SHOWN = 8
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")


def counted(device: torch.device, run: Callable[[], object]) -> Line:
    """Of the second of two runs: kernels, their milliseconds, waits, and the kernels that took longest."""
    run()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with torch.no_grad(), profile(activities=activities) as profiler:
        run()
    wanted = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU
    number: Counter[str] = Counter()
    spent: dict[str, float] = {}
    waits = 0
    for event in profiler.events() or ():
        waits += event.name in WAITS
        if event.device_type == wanted:
            number[event.name] += 1
            spent[event.name] = spent.get(event.name, 0.0) + duration(event)
    names = sorted(spent, key=lambda name: -spent[name])[:SHOWN]
    longest = [f"{number[name]} x {name[:90]}, {spent[name]:.3f} ms" for name in names]
    return {"kernels": sum(number.values()), "ms": round(sum(spent.values()), 4), "waits": waits, "longest": longest}


def duration(event: Any) -> float:
    """Milliseconds of a kernel, or of an operation of the CPU without those that it called."""
    microseconds = event.self_cpu_time_total if event.device_type == DeviceType.CPU else event.time_range.elapsed_us()
    return float(microseconds) / 1000


def lines(device: torch.device, quick: bool) -> Iterator[Line]:
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    operator = make_operator("asag")
    for case in operators(quick):
        given = scaled(tensors_of(case), LARGEST_LOGIT, device, dtype)
        yield {"case": case.name, "variant": "sdpa"} | counted(device, partial(F.scaled_dot_product_attention, *given))
        yield {"case": case.name, "variant": "asag"} | counted(device, partial(attended, operator, given, case))
    for step_case in QUICK_STEPS[:1] if quick else STEP_CASES:
        yield from lines_of_step(device, dtype, step_case, quick)


def lines_of_step(device: torch.device, dtype: torch.dtype, case: StepCase, quick: bool) -> Iterator[Line]:
    denoiser = step_model(case, device, dtype, quick)
    opened: dict[str, Callable[[], AbstractContextManager[Any]]] = {"cfg": nullcontext}
    opened |= {"asag": partial(asag_guidance, denoiser.pipeline(), blocks=case.blocks)}
    for name, context in opened.items():
        with context():
            yield {"case": case.name, "variant": name} | counted(device, denoiser.step)
