"""`figures` in diffusers: the trace of pipeline calls, and that the picture doesn't change by it."""

from __future__ import annotations

import pytest
import torch

from asag.blocks import Address
from asag.hosts.diffusers_pipeline import asag_guidance
from tests.tiny_diffusers import PIPES, counted_calls, inputs, latents, sd15_pipe


@pytest.mark.parametrize("kind", PIPES)
@pytest.mark.parametrize("reuse", [True, False])
def test_every_guided_step_is_traced_and_the_picture_is_the_same(kind: str, reuse: bool) -> None:
    pipe, given = PIPES[kind](), inputs(kind, images=2)
    settings = {"scale": 2.0, "schedule": "linear", "reuse": reuse}
    expected = latents(pipe, given, **settings)
    with counted_calls(getattr(pipe, "unet", None) or pipe.transformer) as calls:
        latents(pipe, given, **settings)
    with (
        counted_calls(getattr(pipe, "unet", None) or pipe.transformer) as traced_calls,
        asag_guidance(pipe, **settings, figures=True) as trace,
    ):
        assert torch.equal(pipe(**given).images, expected)
    assert traced_calls == calls
    assert [step.number for step in trace.steps] == [0, 1, 2]
    assert [step.scales for step in trace.steps] == [pytest.approx((scale, scale)) for scale in (2.0, 4 / 3, 2 / 3)]
    assert all(len(step.sizes) == 2 and min(step.sizes) > 0 for step in trace.steps)
    # Flux's latents come packed, two by two.
    assert trace.heat(1).shape == {"sd15": (32, 32), "sdxl": (16, 16), "sd3": (8, 12), "flux": (4, 6)}[kind]
    (entropies,) = [set(each.entropies) for each in trace.passes]
    assert entropies
    for ordinary, weakened in trace.entropies().values():
        assert 0 < ordinary < 1
        assert 0 < weakened <= 1


def test_only_the_chosen_layers_and_the_window_are_traced() -> None:
    pipe, given = sd15_pipe(), inputs("sd15", steps=4)
    with asag_guidance(pipe, figures=True, blocks="in.4, out.3", start=0.5) as trace:
        pipe(**given)
    assert [step.number for step in trace.steps] == [2, 3]
    assert list(trace.entropies()) == [Address("in", 4, 0), Address("out", 3, 0)]


def test_the_factor_in_unit_push_is_that_of_each_image() -> None:
    pipe, given = sd15_pipe(), inputs("sd15", images=2)
    with asag_guidance(pipe, figures=True, unit="push", scale=0.1) as trace:
        pipe(**given)
    first = trace.steps[0]
    assert first.scales == pytest.approx([0.1 / (size + 1e-3) for size in first.sizes], rel=1e-4)
    assert first.scales[0] != first.scales[1]


def test_each_pipeline_call_is_a_pass() -> None:
    pipe, given = sd15_pipe(), inputs("sd15", steps=2)
    with asag_guidance(pipe, figures=True) as trace:
        pipe(**given)
        pipe(**given)
    assert [each.begins for each in trace.passes] == [0, 2]
    assert [step.number for step in trace.steps] == [0, 1, 2, 3]


@pytest.mark.parametrize("settings", [{}, {"figures": False}, {"figures": True, "scale": 0}])
def test_without_figures_there_is_no_trace(settings: dict[str, object]) -> None:
    with asag_guidance(sd15_pipe(), **settings) as trace:
        assert trace is None


def test_heads_that_were_weakened_are_told_for_each_call() -> None:
    pipe, given = sd15_pipe(), inputs("sd15", steps=2)
    with asag_guidance(pipe, figures=True) as trace:
        pipe(**given)
    assert trace.heads == {}
    with asag_guidance(pipe, figures=True, blocks="in.4:h1, out.3:aligned, mid") as trace:
        pipe(**given)
    assert trace.heads[Address("in", 4, 0)] == [(1,)]
    assert set(trace.heads) == {Address("in", 4, 0), Address("out", 3, 0)}
    assert set(trace.entropies()) == set(trace.heads) | {Address("mid", 0, 0)}
