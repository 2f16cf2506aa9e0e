"""The part "steps": the time and the memory of a guided step against one with CFG alone, by each method."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any
from unittest import mock

import torch

from asag.hosts.diffusers_pipeline import asag_guidance
from asag.kernel_choice import KERNELS, VARIABLE
from asag.lab.bench.device.lines import Line
from asag.lab.bench.measure import Meter, Variant, record, share
from asag.lab.bench.shapes import QUICK_STEPS, STEPS, StepCase
from asag.lab.bench.step import repeated
from asag.lab.bench.step_model import StepModel, step_model

PAIRS = {True: 2, False: 7}
SECONDS_A_CASE = 30.0
# In one timing; the first of a picture looks the rows over.
CALLS = 3
METHODS = ("pag", "seg", "uniform")


def meter_of(device: torch.device, quick: bool) -> Meter:
    return Meter(device, PAIRS[quick], SECONDS_A_CASE, "events" if device.type == "cuda" else "wall")


def variants_of(denoiser: StepModel, case: StepCase) -> dict[str, Variant]:
    """CFG alone; a whole extra pass, as peers make it; ASAG, also without Triton; PAG, SEG and uniform attention."""

    def variant(**settings: Any) -> Variant:
        opened = partial(asag_guidance, denoiser.pipeline(), scale=1.5, blocks=case.blocks, **settings)
        return Variant(run, opened, CALLS)

    run = partial(repeated, denoiser.step, CALLS)
    variants = {"cfg": Variant(run, steps=CALLS), "full-pass": variant(reuse=False), "asag": variant()}
    if not KERNELS.off and denoiser.rows.device.type == "cuda":
        variants["asag, streaming"] = Variant(run, partial(by_streaming, variants["asag"].context), CALLS)
    return variants | {method: variant(method=method) for method in METHODS}


def by_streaming(opened: Callable[[], AbstractContextManager[Any]]) -> ExitStack:
    """As `opened`, without the Triton kernels."""
    stack = ExitStack()
    stack.enter_context(mock.patch.dict(os.environ, {VARIABLE: "streaming"}))
    stack.enter_context(opened())
    return stack


def measured(meter: Meter, case: StepCase, quick: bool) -> Iterator[Line]:
    denoiser = step_model(case, meter.device, torch.float32 if meter.device.type == "cpu" else torch.float16, quick)
    variants = variants_of(denoiser, case)
    times = meter.rounds(variants)
    held = {name: denoiser.weight_bytes + meter.peak_bytes(variant) for name, variant in variants.items()}
    for name in variants:
        found = record("step", case.name, name, times, base="cfg")
        found["memory_to_cfg"] = round(held[name] / held["cfg"], 4)
        if name not in ("cfg", "full-pass"):
            found["share_of_full_pass"] = share(times[name], times["full-pass"], times["cfg"])
        yield found


def lines(device: torch.device, quick: bool) -> Iterator[Line]:
    meter = meter_of(device, quick)
    # Flux has 24 GB of weights.
    for case in QUICK_STEPS[:1] if quick else [case for case in STEPS if case.family != "flux"]:
        try:
            yield from measured(meter, case, quick)
        except torch.cuda.OutOfMemoryError:
            yield {"bench": "step", "case": case.name, "skipped": "not enough memory"}
