"""`python -m asag bench cuda`: what the operator and a guided step ask of a CUDA device, without one.

Kernels, waits of the host for the device, peak memory and the chosen SDPA kernels are counted on fake tensors
(asag.lab.bench.fake_cuda). Times are modelled (asag.lab.bench.roofline): nothing here was run on a GPU.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from asag.lab.bench.fake_cuda import FakeCuda
from asag.lab.bench.fake_step import StepCase, fake_denoiser, step_record
from asag.lab.bench.measure import MIB
from asag.lab.bench.roofline import GPUS, Record
from asag.operators import METHODS, make_operator

# An H100; the RTX 4090 (89) chooses the same SDPA kernels, cuDNN's apart.
SM = 90
SEVERAL = 4


@dataclass(frozen=True)
class OperatorCase:
    """Self-attention as a model has it; with text tokens, joint attention in which the image comes first."""

    name: str
    heads: int
    grid: tuple[int, int]
    head_dim: int
    text: int = 0

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]


OPERATORS = (
    OperatorCase("sd15-mid-512", 8, (8, 8), 160),
    OperatorCase("sd15-out.9-512", 8, (64, 64), 40),
    OperatorCase("sdxl-mid-1024", 20, (32, 32), 64),
    OperatorCase("sdxl-mid-832x1216", 20, (38, 26), 64),
    OperatorCase("sdxl-out.3-1024", 10, (64, 64), 64),
    OperatorCase("sd3-joint-1024", 24, (64, 64), 64, text=154),
    OperatorCase("flux-double-1024", 24, (64, 64), 128, text=512),
)
QUICK_OPERATORS = (
    OperatorCase("quick", 2, (8, 8), 40),
    OperatorCase("quick-joint", 2, (8, 8), 16, text=8),
)
STEPS = (
    StepCase("sd15", 64, 64),
    StepCase("sd15", 64, 64, batch=SEVERAL),
    StepCase("sdxl", 128, 128),
    StepCase("sdxl", 152, 104),
    StepCase("sdxl", 128, 128, batch=SEVERAL),
    StepCase("sdxl", 128, 128, blocks="all"),
    StepCase("sd3", 128, 128, blocks="joint.12"),
)
QUICK_STEPS = (StepCase("sd15", 16, 16), StepCase("sdxl", 8, 8), StepCase("sd3", 8, 8, blocks="joint.12"))
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def case_names(quick: bool) -> list[str]:
    operators, steps = (QUICK_OPERATORS, QUICK_STEPS) if quick else (OPERATORS, STEPS)
    return [*(case.name for case in operators), *(case.name for case in steps)]


def heads_of(case: OperatorCase, batch: int, dtype: torch.dtype) -> list[Tensor]:
    """Query, key and value as the hosts lay them out: (batch, tokens, heads, head_dim), seen with the heads first."""
    shape = (batch, case.tokens + case.text, case.heads, case.head_dim)
    return [torch.empty(shape, device="cuda", dtype=dtype).transpose(1, 2) for _ in range(3)]


def attending(case: OperatorCase, method: str) -> Callable[..., Tensor]:
    operator = make_operator(method)
    if not case.text:
        return lambda query, key, value: operator.plain(query, key, value, case.grid)
    return lambda query, key, value: operator.joint(query, key, value, slice(0, case.tokens), case.grid)


def counted(cuda: FakeCuda, function: Callable[..., Tensor], given: list[Tensor]) -> tuple[Record, int]:
    """What a call asks of the device, and its peak memory beyond what it was given, in bytes."""
    with cuda.recording() as record:
        function(*given)
    return record, record.peak - sum(each.numel() * each.element_size() for each in given)


def line_of(bench: str, name: str, variant: str, record: Record, peak: int, base: Record) -> dict[str, Any]:
    waits = Counter(f"{op.waits} {op.site}" for op in record.waits)
    ratios = {f"modelled ratio, {gpu.name}": round(record.seconds(gpu) / base.seconds(gpu), 3) for gpu in GPUS.values()}
    counts = {"kernels": record.kernels, "waits": len(record.waits), "peak_mib": round(peak / MIB, 1)}
    return (
        {"bench": bench, "case": name, "variant": variant}
        | counts
        | ratios
        | {
            "sdpa": dict(record.sdpa),
            "waits_at": dict(waits),
        }
    )


def operator_lines(cuda: FakeCuda, case: OperatorCase, dtype: torch.dtype, batch: int) -> Iterator[dict[str, Any]]:
    given = heads_of(case, batch, dtype)
    variant = f"{str(dtype).removeprefix('torch.')} batch {batch}"
    base, peak = counted(cuda, F.scaled_dot_product_attention, given)
    yield line_of("operator", case.name, f"sdpa {variant}", base, peak, base)
    for method in METHODS:
        record, peak = counted(cuda, attending(case, method), given)
        yield line_of("operator", case.name, f"{method} {variant}", record, peak, base)


def step_lines(cuda: FakeCuda, case: StepCase, quick: bool) -> Iterator[dict[str, Any]]:
    denoiser = fake_denoiser(case, quick)
    base = step_record(cuda, denoiser, None)
    held = denoiser.weight_bytes
    yield line_of("step", case.name, "cfg", base, base.peak - held, base)
    for method in METHODS:
        record = step_record(cuda, denoiser, {"method": method, "blocks": case.blocks})
        yield line_of("step", case.name, method, record, record.peak - held, base)
    whole = step_record(cuda, denoiser, {"blocks": case.blocks, "reuse": False})
    yield line_of("step", case.name, "asag, whole pass", whole, whole.peak - held, base)


def lines(quick: bool, only: str) -> Iterator[dict[str, Any]]:
    operators, steps = (QUICK_OPERATORS, QUICK_STEPS) if quick else (OPERATORS, STEPS)
    with FakeCuda(SM) as cuda:
        for case in operators:
            for dtype in DTYPES if only in case.name else ():
                for batch in (1, SEVERAL):
                    yield from operator_lines(cuda, case, dtype, batch)
        for step_case in steps:
            if only in step_case.name:
                yield from step_lines(cuda, step_case, quick)


def text_of(line: dict[str, Any]) -> str:
    numbers = " ".join(f"{value:>7}" for name, value in line.items() if name.startswith("modelled"))
    kernels = (
        ", ".join(f"{count} x {name}" for name, count in line["sdpa"].items()) if line["bench"] == "operator" else ""
    )
    head = f"{line['bench']:9}{line['case']:24}{line['variant']:26}"
    waits = "".join(f"\n{'':33}waits {count} x {where}" for where, count in line["waits_at"].items())
    return f"{head}{line['kernels']:>8}{line['waits']:>6}{line['peak_mib']:>10} {numbers}  {kernels}{waits}"


def main(args: argparse.Namespace) -> int:
    """Print the tables, and with --json write a line a measurement."""
    names = " ".join(f"{gpu.name:>7}" for gpu in GPUS.values())
    print("Counted on fake CUDA tensors. Times are modelled, not measured: ratio to SDPA, or to a step with CFG alone.")
    print(f"{'bench':9}{'case':24}{'variant':26}{'kernels':>8}{'waits':>6}{'peak MiB':>10} {names}  SDPA kernels")
    found = []
    for line in lines(args.quick, args.only):
        found.append(line)
        print(text_of(line), flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text("".join(json.dumps(line) + "\n" for line in found))
    return 0
