"""A push that is lost in the rounding of half precision is told, by the size that research/precision measured."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from asag.lab.bench.fake_cuda import FakeCuda
from asag.rounding import FINER, Rounding
from tests.support import needs_fake_cuda

MEASURED = Path(__file__).parents[1] / "research" / "precision" / "results"


def spread(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lines() -> list[dict]:
    found = [json.loads(line) for path in MEASURED.glob("*.jsonl") for line in path.read_text().splitlines()]
    return [line for line in found if line["of"] == "delta"]


@pytest.mark.parametrize("line", lines(), ids=lambda line: f"{line['model']}-{line['dtype']}")
def test_what_was_measured_as_mostly_rounding_is_told(line: dict) -> None:
    """The step's δ has its rounding in it."""
    rounding, prediction = Rounding(), spread(1, 4, 8, 8)
    computed = line["delta_to_prediction"] * (1 + line["error_whole"] ** 2) ** 0.5
    rounding.add(computed * prediction, prediction, getattr(torch, line["dtype"]))
    assert bool(rounding.message()) == (line["error_whole"] > 0.5)


@pytest.mark.parametrize(("dtype", "step"), [(torch.float16, 2**-10), (torch.bfloat16, 2**-7)])
def test_the_bound_is_twice_the_distance_of_neighbours_at_one(dtype: torch.dtype, step: float) -> None:
    prediction = spread(3, 4, 8, 8)
    for factor, told in ((0.999, True), (1.001, False)):
        rounding = Rounding()
        delta = spread(3, 4, 8, 8, seed=2)
        size = (prediction.square().sum((1, 2, 3)) / delta.square().sum((1, 2, 3))).sqrt().view(3, 1, 1, 1)
        shares = torch.tensor([4.0, 2 * factor, 4.0], dtype=torch.float64).view(3, 1, 1, 1)
        rounding.add(step * shares * size * delta, prediction, dtype)
        assert bool(rounding.message()) == told


def test_the_message_counts_the_steps_and_names_the_dtype_and_what_is_finer() -> None:
    rounding, prediction = Rounding(), spread(2, 15, 8)
    for share in (1e-3, 1.0, 1e-4):
        rounding.add(share * prediction, prediction, torch.bfloat16)
    assert rounding.message() == (
        "ASAG's push was hardly larger than the rounding of bfloat16 in 2 of 3 guided steps, so much of it is noise; "
        "weaken more blocks, or run the model in float16 or float32"
    )


@pytest.mark.parametrize(("lost", "steps", "told"), [(1, 4, False), (2, 5, False), (2, 4, True), (3, 4, True)])
def test_it_is_told_from_half_of_the_steps_on(lost: int, steps: int, told: bool) -> None:
    rounding, prediction = Rounding(), spread(1, 4, 8, 8)
    for step in range(steps):
        rounding.add((1e-3 if step < lost else 1.0) * prediction, prediction, torch.bfloat16)
    assert bool(rounding.message()) == told


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_is_never_lost(dtype: torch.dtype) -> None:
    rounding, prediction = Rounding(), spread(1, 4, 8, 8)
    rounding.add(1e-30 * prediction, prediction, dtype)
    assert rounding.message() == ""


@pytest.mark.parametrize("delta", [0.0, torch.nan, torch.inf])
def test_no_push_and_one_that_is_no_number_are_told_elsewhere(delta: float) -> None:
    rounding = Rounding()
    rounding.add(torch.full((1, 4, 8, 8), delta), spread(1, 4, 8, 8), torch.bfloat16)
    assert rounding.message() == ""


def test_the_log_has_one_line_for_the_run(caplog: pytest.LogCaptureFixture) -> None:
    rounding = Rounding()
    rounding.add(1e-6 * spread(1, 4, 8, 8), spread(1, 4, 8, 8), torch.float16)
    rounding.log()
    rounding.log()
    ((level, message),) = [(record.levelno, record.message) for record in caplog.records]
    assert level == logging.WARNING
    assert message.endswith("or run the model in float32")


@needs_fake_cuda
@pytest.mark.parametrize("dtype", [*FINER, torch.float32])
def test_nothing_waits_for_the_device(dtype: torch.dtype) -> None:
    with FakeCuda() as cuda:
        delta, rounding = torch.empty(2, 4, 8, 8, device="cuda", dtype=dtype), Rounding()
        with cuda.recording() as record:
            rounding.add(delta, delta, dtype)
    assert [f"{op.waits} at {op.site}" for op in record.waits] == []
    assert record.kernels == (7 if dtype in FINER else 0)
