"""`python -m asag bench cuda`: what the operator and a guided step ask of a CUDA device, without one.

Kernels, waits of the host for the device, peak memory and the chosen SDPA kernels are counted on fake tensors
(asag.lab.bench.fake_cuda), without Triton and with it. Times are modelled (asag.lab.bench.roofline): nothing here was
run on a GPU.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from asag.lab.bench import shapes
from asag.lab.bench.cuda_table import cost_table, operator_table
from asag.lab.bench.fake_cuda import Answer, FakeCuda, plausible, plausible_above_35
from asag.lab.bench.fake_step import step_record
from asag.lab.bench.measure import MIB
from asag.lab.bench.roofline import GPUS, Record
from asag.lab.bench.shapes import SEVERAL, OperatorCase, StepCase
from asag.lab.bench.step_model import step_model
from asag.operators import METHODS, make_operator

# An H100; the RTX 4090 (89) chooses the same SDPA kernels, cuDNN's apart.
SM = 90
HALF = torch.float16
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# "similarity" is "asag" with another sign: the same kernels.
STEP_METHODS = tuple(method for method in METHODS if method != "similarity")
USES_TRITON = ("asag", "similarity")

Counting = Callable[[Answer], tuple[Record, int]]
Line = dict[str, Any]


@dataclass(frozen=True)
class Counted:
    """What is counted, and with Triton or without ("": it makes no difference)."""

    method: str
    dtype: torch.dtype = HALF
    batch: int = 1
    triton: str = ""

    @property
    def facts(self) -> Line:
        dtype = str(self.dtype).removeprefix("torch.")
        return {"method": self.method, "dtype": dtype, "batch": self.batch, "triton": self.triton}


def case_names(quick: bool) -> list[str]:
    return [*(case.name for case in shapes.operators(quick)), *(case.name for case in shapes.steps(quick))]


def heads_of(case: OperatorCase, batch: int, dtype: torch.dtype) -> list[Tensor]:
    """Query, key and value as the hosts lay them out: (batch, tokens, heads, head_dim), seen with the heads first."""
    shape = (batch, case.tokens + case.text, case.heads, case.head_dim)
    return [torch.empty(shape, device="cuda", dtype=dtype).transpose(1, 2) for _ in range(3)]


def attending(case: OperatorCase, method: str) -> Callable[..., Tensor]:
    operator = make_operator(method)
    if not case.text:
        return lambda query, key, value: operator.plain(query, key, value, case.grid)
    return lambda query, key, value: operator.joint(query, key, value, slice(0, case.tokens), case.grid)


def counted(
    cuda: FakeCuda, function: Callable[..., Tensor], given: list[Tensor], answer: Answer = plausible
) -> tuple[Record, int]:
    """What a call asks of the device, and its peak memory beyond what it was given, in bytes."""
    with cuda.recording(answer, given) as record:
        function(*given)
    return record, record.peak - sum(each.numel() * each.element_size() for each in given)


def line_of(bench: str, name: str, what: Counted, logits: str, found: tuple[Record, int], base: Record) -> Line:
    record, peak = found
    line: Line = {"bench": bench, "case": name} | what.facts
    line |= {"logits": logits, "kernels": record.kernels, "waits": len(record.waits), "peak_mib": round(peak / MIB, 1)}
    line |= {f"modelled ratio, {gpu.name}": round(record.seconds(gpu) / base.seconds(gpu), 3) for gpu in GPUS.values()}
    waits = Counter(f"{op.waits} {op.site}" for op in record.waits)
    return line | {"sdpa": dict(record.sdpa), "waits_at": dict(waits)}


def lines_of(bench: str, name: str, what: Counted, count: Counting, base: Record) -> Iterator[Line]:
    """One line where no number is read off the device: then logits of any size take the same way. Else one for logits
    below 35, the greatest that sums of unshifted exponentials hold, and one for those above."""
    first = count(plausible)
    if not first[0].waits:
        yield line_of(bench, name, what, "any", first, base)
        return
    yield line_of(bench, name, what, "below 35", first, base)
    yield line_of(bench, name, what, "above 35", count(plausible_above_35), base)


def by_triton(cuda: FakeCuda, what: Counted, tritons: list[str]) -> Iterator[Counted]:
    """What is counted once for each of `tritons`, with the kernels on or off meanwhile."""
    for triton in tritons if what.method.startswith(USES_TRITON) else [""]:
        with cuda.with_triton(triton == "with"):
            yield Counted(what.method, what.dtype, what.batch, triton)


def operator_lines(cuda: FakeCuda, case: OperatorCase, tritons: list[str]) -> Iterator[Line]:
    """Every method in half precision; ASAG in the other dtypes, and for several images."""
    for dtype, batch in [*((dtype, 1) for dtype in DTYPES), (HALF, SEVERAL)]:
        given = heads_of(case, batch, dtype)
        sdpa = counted(cuda, F.scaled_dot_product_attention, given)
        yield line_of("operator", case.name, Counted("sdpa", dtype, batch), "any", sdpa, sdpa[0])
        for method in METHODS if (dtype, batch) == (HALF, 1) else ["asag"]:
            for what in by_triton(cuda, Counted(method, dtype, batch), tritons):
                count = partial(counted, cuda, attending(case, method), given)
                yield from lines_of("operator", case.name, what, count, sdpa[0])


def step_lines(cuda: FakeCuda, case: StepCase, dtype: torch.dtype, tritons: list[str], quick: bool) -> Iterator[Line]:
    """ASAG; every method, and a whole pass, for a family's first case in half precision."""
    denoiser = step_model(case, torch.device("cuda"), dtype, quick)
    held = denoiser.weight_bytes

    def count(settings: dict[str, Any] | None, answer: Answer) -> tuple[Record, int]:
        record = step_record(cuda, denoiser, settings, answer)
        return record, record.peak - held

    cfg = count(None, plausible)
    yield line_of("step", case.name, Counted("cfg", dtype, case.batch), "any", cfg, cfg[0])
    variants: dict[str, dict[str, Any]] = {"asag": {"blocks": case.blocks}}
    if dtype == HALF and case in firsts(shapes.steps(quick)):
        variants |= {method: {"method": method, "blocks": case.blocks} for method in STEP_METHODS}
        variants["asag, whole pass"] = {"blocks": case.blocks, "reuse": False}
    for name, settings in variants.items():
        for what in by_triton(cuda, Counted(name, dtype, case.batch), tritons):
            yield from lines_of("step", case.name, what, partial(count, settings), cfg[0])


def firsts(cases: tuple[StepCase, ...]) -> list[StepCase]:
    """The first case of each family."""
    return [
        next(each for each in cases if each.family == name) for name in dict.fromkeys(each.family for each in cases)
    ]


def dtypes_of(case: StepCase) -> tuple[torch.dtype, ...]:
    """The first case of a UNet is counted in every dtype."""
    return DTYPES if case.family in ("sd15", "sdxl") and case in firsts(shapes.STEPS) else (HALF,)


def lines(quick: bool, only: str, tritons: list[str]) -> Iterator[Line]:
    with FakeCuda(SM) as cuda:
        for case in shapes.operators(quick):
            if only in case.name:
                yield from operator_lines(cuda, case, tritons)
        for step_case in shapes.steps(quick):
            for dtype in dtypes_of(step_case) if only in step_case.name else ():
                yield from step_lines(cuda, step_case, dtype, tritons, quick)


def text_of(line: Line) -> str:
    numbers = " ".join(f"{value:>8}" for name, value in line.items() if name.startswith("modelled"))
    kernels = [f"{count} x {name}" for name, count in line["sdpa"].items()] if line["bench"] == "operator" else []
    head = f"{line['bench']:9}{line['case']:24}{line['method']:17}{line['triton']:8}"
    waits = "".join(f"\n{'':33}waits {count} x {where}" for where, count in line["waits_at"].items())
    given = f"{line['dtype']:9}{line['batch']:>2} {line['logits']:>8}"
    counts = f"{line['kernels']:>8}{line['waits']:>6}{line['peak_mib']:>10} "
    return f"{head}{given}{counts}{numbers}  {', '.join(kernels)}{waits}"


def heading() -> str:
    names = " ".join(f"{gpu.name:>8}" for gpu in GPUS.values())
    columns = f"{'bench':9}{'case':24}{'method':17}{'Triton':8}{'dtype':9}{'n':>2} {'logits':>8}"
    return f"{columns}{'kernels':>8}{'waits':>6}{'peak MiB':>10} {names}  SDPA kernels"


def main(args: argparse.Namespace) -> int:
    """Print the tables, and with --json write a line a measurement and a page beside it."""
    torch.set_num_threads(args.threads)
    print("Counted on fake CUDA tensors. Times are modelled, not measured: ratio to SDPA, or to a step with CFG alone.")
    print(heading())
    found = []
    for line in lines(args.quick, args.only, ["without", "with"] if args.triton == "both" else [args.triton]):
        found.append(line)
        print(text_of(line), flush=True)
    tables = f"{cost_table(found)}\n\n{operator_table(found)}\n"
    print(f"\n{tables}")
    if args.json:
        write(args.json, found, tables)
    return 0


def write(path: Path, found: list[Line], tables: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in found))
    listed = "\n".join([heading(), *(text_of(line) for line in found)])
    path.with_suffix(".md").write_text(
        "# Counted on fake CUDA tensors; times are modelled from data sheets. No GPU was used.\n\n"
        f"`python -m asag bench cuda --json {path}` wrote it.\n\n{tables}\n```\n{listed}\n```\n"
    )
