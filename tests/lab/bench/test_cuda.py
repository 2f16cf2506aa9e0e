"""Fake CUDA tensors record what CUDA code would ask of the device; `python -m asag bench cuda` counts with them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from asag.attention import adversarial_sinkhorn_attention
from asag.lab.bench import cli, cuda, cuda_table, fake_cuda, shapes
from asag.lab.bench.fake_cuda import FakeCuda
from asag.lab.bench.fake_step import step_record
from asag.lab.bench.roofline import Gpu, Op, Record
from asag.lab.bench.step_model import step_model
from asag.operators import Operator

HALF = torch.float16


def recorded(function: Callable[[Tensor], object], tensor_of: Callable[[], Tensor], sm: int = 89) -> Record:
    with FakeCuda(sm) as fake:
        tensor = tensor_of()
        with fake.recording() as record:
            function(tensor)
    return record


def tokens(*shape: int, dtype: torch.dtype = HALF) -> Callable[[], Tensor]:
    return lambda: torch.empty(shape, device="cuda", dtype=dtype)


@dataclass(frozen=True)
class Waiting(Operator):
    """A double: an operator that asks the device for a number in each sweep, as one written for a CPU would."""

    sweeps: int = 2

    def plain(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        for _ in range(self.sweeps):
            assert query.abs().amax().item() > 0
        return value


def test_an_operator_that_reads_a_number_in_each_sweep_is_found() -> None:
    record = recorded(
        lambda each: [Waiting(1).plain(each, each, each), Waiting().plain(each, each, each)], tokens(1, 2, 8, 16)
    )
    assert [op.waits for op in record.waits] == ["_local_scalar_dense"] * 3
    assert all("test_cuda.py" in op.site for op in record.waits)


@pytest.mark.parametrize(
    ("function", "waits"),
    [
        (lambda each: each.sum(), []),
        (lambda each: bool((each > 0).all()), ["_local_scalar_dense"]),
        (lambda each: each[0].tolist(), ["_local_scalar_dense"]),
        (lambda each: torch.equal(each, each + 1), ["equal"]),
        (lambda each: each[each > 0], ["nonzero"]),
        (lambda each: each.cpu(), ["cuda to cpu"]),
        (lambda each: each[torch.as_tensor([0, 1], device="cuda")], ["cpu to cuda"]),
        (lambda each: each[torch.arange(2, device="cuda")], []),
    ],
)
def test_what_makes_the_host_wait(function: Callable[[Tensor], object], waits: list[str]) -> None:
    assert [op.waits for op in recorded(function, tokens(4, 3)).waits] == waits


@pytest.mark.parametrize(
    ("dtype", "head_dim", "masked", "sm", "kernel"),
    [
        (torch.float16, 64, False, 80, "flash"),
        (torch.bfloat16, 40, False, 89, "flash"),
        (torch.float16, 64, True, 89, "efficient"),
        (torch.float32, 64, False, 89, "efficient"),
        (torch.float64, 64, False, 89, "math"),
        (torch.float16, 64, False, 75, "efficient"),
        (torch.bfloat16, 64, False, 75, "math"),
    ],
)
def test_the_kernel_that_cuda_takes(dtype: torch.dtype, head_dim: int, masked: bool, sm: int, kernel: str) -> None:
    with FakeCuda(sm) as fake:
        query = torch.empty(1, 2, 32, head_dim, device="cuda", dtype=dtype)
        mask = torch.empty(1, 1, 32, 32, device="cuda", dtype=dtype) if masked else None
        with fake.recording() as record:
            F.scaled_dot_product_attention(query, query, query, attn_mask=mask)
    assert [name.split()[0] for name in record.sdpa] == [kernel]


@pytest.mark.parametrize(("keys", "copied"), [(32, False), (40, True)])
def test_a_mask_whose_rows_are_not_aligned_is_written_out(keys: int, copied: bool) -> None:
    with FakeCuda() as fake:
        query, key = (torch.empty(1, 2, count, 16, device="cuda") for count in (48, keys))
        mask = torch.empty(1, 2, 1, keys, device="cuda").expand(-1, -1, 48, -1)
        with fake.recording() as record:
            F.scaled_dot_product_attention(query, key, key, attn_mask=mask)
    padded = [each for each in record.allocations if each.name == "constant_pad_nd"]
    assert [each.shape for each in padded] == ([(1, 2, 48, 48)] if copied else [])


def test_memory_is_live_until_it_is_freed() -> None:
    def held(tensor: Tensor) -> Tensor:
        first = tensor + 1
        second = first + 1
        del first
        return second + 1

    record = recorded(held, tokens(1024, dtype=torch.float32))
    assert record.peak == 3 * 4096
    assert record.kernels == 3


def test_squares_are_found() -> None:
    record = recorded(lambda each: each @ each.T, tokens(256, 16))
    assert [each.shape for each in record.squares(256, 256)] == [(256, 256)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a real device is there")
def test_a_torch_whose_fake_tensors_need_a_real_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_cuda, "WITHOUT_DEVICE", False)
    with pytest.raises(RuntimeError, match=rf"need a newer torch than {re.escape(torch.__version__)}$"):
        fake_cuda.guard_cuda()


def test_a_roofline_takes_what_takes_longest() -> None:
    gpu = Gpu("made up", half=1e12, single=1e11, double=1e10, bandwidth=1e9, exps=1e8, launch=1e-6)

    def op(**changed: float) -> Op:
        costs = {"kernels": 1, "flops": 0.0, "exps": 0.0, "moved": 0.0} | changed
        return Op("name", "", dtype=HALF, shape=(), **costs)  # type: ignore[arg-type]

    assert op().seconds(gpu) == 1e-6
    assert op(flops=1e9).seconds(gpu) == 1e-3
    assert op(moved=1e7, flops=1e9).seconds(gpu) == 1e-2
    assert op(exps=1e7, moved=1e7).seconds(gpu) == 1e-1
    assert Record([op(), op(flops=1e9)]).seconds(gpu) == pytest.approx(1e-3 + 1e-6)


def test_the_operator_runs_on_fake_tensors() -> None:
    record = recorded(lambda each: adversarial_sinkhorn_attention(each, each, each), tokens(1, 2, 64, 16))
    assert record.kernels > 0
    assert record.seconds(next(iter(cuda.GPUS.values()))) > 0


def run(*argv: str) -> int:
    return cli.main(["cuda", "--quick", "--threads", "1", *argv])


def test_the_command_writes_a_line_for_each_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cuda.jsonl"
    assert run("--only", "sd15", "--triton", "with", "--json", str(out)) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {line["method"] for line in lines} == {"cfg", "asag", "pag", "seg", "uniform", "asag, whole pass"}
    assert all(line["kernels"] > 0 for line in lines)
    assert {line["method"]: line["waits_at"] for line in lines if line["waits"]} == {}  # no guided step waits
    assert {line["logits"] for line in lines} == {"any"}
    told = capsys.readouterr().out
    assert "modelled, not measured" in told
    page = out.with_suffix(".md").read_text()
    assert page.startswith("# Counted on fake CUDA tensors; times are modelled from data sheets. No GPU was used.\n")
    assert cuda_table.cost_table(lines) in page
    assert cuda_table.cost_table(lines) in told


def test_the_first_case_of_a_unet_is_counted_in_every_dtype() -> None:
    every = [case.name for case in shapes.STEPS if cuda.dtypes_of(case) == cuda.DTYPES]
    assert every == ["sd15-64x64-mid", "sdxl-128x128-mid"]


def test_with_and_without_triton_stand_side_by_side(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = {}
    for triton in ("both", "without", "with"):
        out = tmp_path / f"{triton}.jsonl"
        assert run("--only", "quick-joint", "--triton", triton, "--json", str(out)) == 0
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        found[triton] = [line for line in lines if line["method"] == "asag"]
        assert {line["triton"] for line in lines if line["method"] in ("sdpa", "pag", "seg", "uniform")} == {""}
    assert [line for line in found["both"] if line["triton"] == "with"] == found["with"]
    assert [line for line in found["both"] if line["triton"] == "without"] == found["without"]
    assert {(line["dtype"], line["batch"]) for line in found["with"]} == {
        ("float16", 1),
        ("bfloat16", 1),
        ("float32", 1),
        ("float16", 4),
    }
    fewer = zip(found["with"], found["without"], strict=True)
    assert all(one["kernels"] < other["kernels"] for one, other in fewer)


def test_logits_above_35_have_a_line_of_their_own_where_a_number_is_read() -> None:
    with FakeCuda() as fake:
        given = tokens(1, 2, 8, 16)()

        def asked(each: Tensor) -> Tensor:
            return each + 1 if float(each.abs().amax()) < 35 else each + 1 + 1

        base, _ = cuda.counted(fake, asked, [given])
        what = cuda.Counted("asag")
        found = list(cuda.lines_of("operator", "case", what, partial(cuda.counted, fake, asked, [given]), base))
    assert [(line["logits"], line["waits"]) for line in found] == [("below 35", 1), ("above 35", 1)]
    assert found[1]["kernels"] == found[0]["kernels"] + 1


def line(**changed: object) -> dict[str, Any]:
    made = {"bench": "step", "case": "sdxl-152x104-mid", "method": "asag", "triton": "with", "dtype": "float16"}
    made |= {"batch": 1, "logits": "any", "kernels": 12, "waits": 0, "peak_mib": 3.0}
    return made | {"modelled ratio, H100": 1.251, "modelled ratio, RTX 4090": 1.5} | changed


def test_the_table_names_sizes_in_pixels_and_puts_triton_last() -> None:
    lines = [line(method="cfg", triton="", kernels=9), line(triton="without", kernels=30, waits=2), line()]
    lines += [line(dtype="bfloat16", kernels=77), line(method="pag", triton="")]
    row = cuda_table.cost_table(lines).splitlines()[-1]
    assert row == "| SDXL, 832 × 1216, `mid` | 9 | 30 / 12 | 2 / 0 | 1.500 / 1.500 | 1.251 / 1.251 | 1.36 |"
    assert cuda_table.title_of("sd15-64x64-all-batch4") == "SD1.5, 512 × 512, `all`, 4 images"
    operator = line(bench="operator", case="sdxl-mid-1024", triton="without", kernels=30)
    row = cuda_table.operator_table([operator]).splitlines()[-1]
    assert row.endswith("| 30 / – | 0 / – | 3.0 / – | 1.5 / – | 1.3 / – |")


def test_a_guided_step_adds_few_kernels_besides_the_model() -> None:
    """δ, its scale, its rows and their sum; four to leave out what is no number (asag.finite), and in half precision
    seven to compare δ with rounding: nothing is computed that the settings don't need."""
    with FakeCuda() as fake:
        denoiser = step_model(shapes.QUICK_STEPS[0], torch.device("cuda"), quick=True)
        record = step_record(fake, denoiser, {"blocks": "mid"})
    assert record.of("asag/hosts/", "asag/guidance.py").kernels == 4
    assert record.of("asag/finite.py").kernels == 4
    assert record.of("asag/rounding.py").kernels == 7


def test_the_tables_of_the_docs_are_those_of_the_lines() -> None:
    root = Path(__file__).parents[3]
    text = (root / "docs" / "cost.md").read_text()
    lines = cuda_table.read(max((root / "bench" / "results").glob("*-cuda-modelled.jsonl")))
    assert cuda_table.cost_table(lines) in text
    assert cuda_table.operator_table(lines) in text
    steps = {line["case"] for line in lines if line["bench"] == "step"}
    assert steps == {case.name for case in shapes.STEPS}
