"""A push that holds NaN or inf is left out, image by image, and the run knows in how many steps."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import Tensor

from asag.finite import FinitePushes, is_finite
from asag.guidance import AdaptiveScale
from asag.lab.bench.fake_cuda import FakeCuda
from asag.trace import Trace
from asag.units import UnitScale
from tests.support import needs_fake_cuda

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SIDES = [(2, 4, 3, 5), (2, 15, 8), (2, 4, 2, 3, 5)]


def normal(seed: int, shape: tuple[int, ...] = (2, 4, 3, 5)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def holding(push: Tensor, image: int, value: float) -> Tensor:
    """The push with such a number somewhere in an image."""
    changed = push.clone()
    changed[image].view(-1)[-2] = value
    return changed


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SIDES)
def test_an_image_without_numbers_isnt_pushed_and_the_others_are_as_alone(
    shape: tuple[int, ...], dtype: torch.dtype, value: float
) -> None:
    push, finite = normal(1, shape).to(dtype), FinitePushes()
    broken = holding(push, 1, value)
    assert is_finite(broken).flatten().tolist() == [True, False]
    left = finite(broken)
    assert left.dtype == dtype
    assert torch.equal(left, torch.stack([push[0], torch.zeros_like(push[1])]))
    assert torch.equal(finite(push), push)
    assert finite.message().startswith("ASAG left out its push in 1 of 2 guided steps: it held NaN or inf")


def test_the_largest_numbers_of_half_precision_are_numbers() -> None:
    push = torch.full((1, 4, 64, 64), 65504.0, dtype=torch.float16)
    assert torch.equal(FinitePushes()(push), push)


def test_the_log_has_a_line_for_the_run_and_none_when_all_went_well(caplog: pytest.LogCaptureFixture) -> None:
    finite = FinitePushes()
    finite(normal(1))
    finite.log()
    assert caplog.messages == []
    for value in (math.nan, 0.0, math.inf):
        finite(holding(normal(1), 0, value))
    finite.log()
    finite.log()
    assert [(record.levelno, record.message[:46]) for record in caplog.records] == [
        (logging.WARNING, "ASAG left out its push in 2 of 3 guided steps:")
    ]


@needs_fake_cuda
def test_nothing_waits_for_the_device() -> None:
    with FakeCuda() as cuda:
        push, finite = torch.empty(2, 4, 8, 8, device="cuda", dtype=torch.float16), FinitePushes()
        with cuda.recording() as record:
            finite(push)
    assert [f"{op.waits} at {op.site}" for op in record.waits] == []
    assert record.kernels == 4


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("broken", [0, 1])
@pytest.mark.parametrize("unit", ["push", "cfg"])
def test_averages_go_on_as_if_the_step_had_not_been(unit: str, broken: int, value: float) -> None:
    """In the second image one step is no number; its other steps are scaled as without that one."""
    deltas, cfg = [normal(seed) / seed for seed in (1, 2, 3)], 3 * normal(9)
    scale, without = UnitScale(unit), UnitScale(unit)
    for step, delta in enumerate(deltas):
        factor = scale(0.3, holding(delta, 1, value) if step == broken else delta, cfg)
        if step != broken:
            expected = without(0.3, delta, cfg)
            torch.testing.assert_close(factor[1], torch.as_tensor(expected)[1], rtol=1e-12, atol=0)
    whole = UnitScale(unit)
    for delta in deltas:
        last = whole(0.3, delta, cfg)
    torch.testing.assert_close(torch.as_tensor(factor)[0], torch.as_tensor(last)[0], rtol=1e-12, atol=0)


def test_the_adaptive_scale_goes_on_after_steps_without_numbers() -> None:
    adaptive, delta = AdaptiveScale(), normal(1)
    for _ in range(2):
        adaptive(2.0, holding(delta, 0, math.nan))
    torch.testing.assert_close(adaptive(2.0, delta)[0], AdaptiveScale()(2.0, delta)[0], rtol=1e-12, atol=0)


def test_a_trace_draws_nothing_of_an_image_that_wasnt_pushed() -> None:
    trace, delta = Trace(), normal(1)
    trace.begin_pass(2)
    trace.add_step(0, 2.0, delta)
    trace.add_step(1, 2.0, holding(delta, 1, math.nan))
    expected = (2 * delta[1]).square().mean(dim=0).sqrt()
    torch.testing.assert_close(trace.heat(1), expected)
    torch.testing.assert_close(trace.heat(0), math.sqrt(2) * (2 * delta[0]).square().mean(dim=0).sqrt())
