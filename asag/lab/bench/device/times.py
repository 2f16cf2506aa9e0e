"""The part "times": the operator's time and memory against attention, by each of its ways and by each method."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

from asag.lab.bench.device.accuracy import OTHER_METHODS, attended, scaled, tensors_of, ways
from asag.lab.bench.device.lines import Line
from asag.lab.bench.device.steps import meter_of
from asag.lab.bench.measure import MIB, Meter, Variant, record
from asag.lab.bench.operator import DENSE_TENSORS
from asag.lab.bench.shapes import OperatorCase, operators
from asag.operators import make_operator

LARGEST_LOGIT = 10.0
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def free_bytes(device: torch.device) -> float:
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else float("inf")


def variants_of(case: OperatorCase, device: torch.device, dtype: torch.dtype) -> dict[str, Variant]:
    given = scaled(tensors_of(case), LARGEST_LOGIT, device, dtype)
    dense_bytes = DENSE_TENSORS * 4 * case.heads * (case.tokens + case.text) ** 2
    found = {"sdpa": Variant(partial(F.scaled_dot_product_attention, *given))}
    for way in ways():
        if not way.suits(*given) or (way.name == "dense" and dense_bytes > free_bytes(device) / 2):
            continue
        found[way.name] = Variant(partial(attended, way.operator, given, case), way.opened)
    for method in OTHER_METHODS:
        found[method] = Variant(partial(attended, make_operator(method), given, case))
    return found


def measured(meter: Meter, case: OperatorCase, dtype: torch.dtype) -> Iterator[Line]:
    variants = variants_of(case, meter.device, dtype)
    times = meter.rounds(variants)
    for name, variant in variants.items():
        found = record("operator", case.name, name, times, base="sdpa")
        found["dtype"] = str(dtype).removeprefix("torch.")
        yield found | {"peak_mib": round(meter.peak_bytes(variant) / MIB, 2)}


def lines(device: torch.device, quick: bool) -> Iterator[Line]:
    meter = meter_of(device, quick)
    for dtype in DTYPES if device.type == "cuda" else (torch.float32,):
        for case in operators(quick):
            try:
                yield from measured(meter, case, dtype)
            except torch.cuda.OutOfMemoryError:
                yield {"bench": "operator", "case": case.name, "skipped": "not enough memory"}
