"""`every` in diffusers' pipelines: which calls compute, what the others do to the picture, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import EDMEulerScheduler, HeunDiscreteScheduler
from torch import Tensor

from asag.hosts.diffusers_pipeline import asag_guidance
from asag.models.base import UnsupportedModel
from tests.hosts.test_diffusers import PREDICTED, predicting
from tests.tiny_diffusers import PIPES, counted_calls, inputs, latents, sd15_pipe


def denoiser_of(pipe: Any) -> Any:
    return getattr(pipe, "unet", None) or pipe.transformer


@contextmanager
def recorded_calls(pipe: Any) -> Iterator[list[tuple[Any, dict[str, Any], Tensor]]]:
    """The arguments of each of the host's calls of its denoiser, and the prediction that it got."""
    calls: list[Any] = []

    def record(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        calls.append((args, kwargs, output[0].clone()))

    handle = denoiser_of(pipe).register_forward_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def picture_factor(pipe: Any, kwargs: dict[str, Any], args: Any) -> tuple[float, float]:
    """What a change of the prediction by 1 changes the picture by, and σ, by the textbook."""
    scheduler = pipe.scheduler
    if not hasattr(pipe, "unet"):
        flux = "Flux" in type(pipe).__name__
        sigma = float(kwargs["timestep"].flatten()[0]) / (1 if flux else 1000)
        return -sigma, sigma
    timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
    alpha = float(scheduler.alphas_cumprod[int(torch.as_tensor(timestep).flatten()[0].round())])
    sigma = ((1 - alpha) / alpha) ** 0.5
    return {"epsilon": -sigma, "v_prediction": -((1 - alpha) ** 0.5), "sample": 1.0}[
        scheduler.config.get("prediction_type", "epsilon")
    ], sigma


@torch.no_grad()
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("reuse", [True, False], ids=["shared", "whole"])
@pytest.mark.parametrize("kind", PREDICTED)
def test_the_picture_is_pushed_as_before_times_the_ratio_of_sigmas(kind: str, reuse: bool) -> None:
    """Whatever the model predicts. The push of a call is what was added to its unguided prediction."""
    pipe, given = predicting(kind), inputs(kind[:4], images=2, steps=4)
    if kind == "flux":
        given["true_cfg_scale"] = 1.0
    with recorded_calls(pipe) as calls:
        latents(pipe, given, scale=2.0, every=3, reuse=reuse, **({} if hasattr(pipe, "unet") else {"blocks": "all"}))
    pushes = []
    for args, kwargs, guided in calls[:4]:
        factor, sigma = picture_factor(pipe, kwargs, args)
        pushes.append(factor / sigma * (guided - denoiser_of(pipe)(*args, **kwargs)[0]))
    largest = pushes[0].abs().max()
    assert largest > 1e-3
    for again in pushes[1:3]:
        assert (again - pushes[0]).abs().max() < 1e-6 * largest
    assert (pushes[3] - pushes[0]).abs().max() > 1e-3 * largest


@pytest.mark.parametrize("reuse", [True, False], ids=["shared", "whole"])
@pytest.mark.parametrize("kind", PIPES)
def test_a_call_that_uses_the_last_push_costs_nothing(kind: str, reuse: bool) -> None:
    pipe, given = PIPES[kind](), inputs(kind, guided=False, steps=5)
    counts = []
    for settings in ({}, {"scale": 1.5, "every": 2, "reuse": reuse}):
        with counted_calls(denoiser_of(pipe)) as rows:
            latents(pipe, given, **settings)
        counts.append(list(rows))
    plain, guided = counts
    assert plain == [1] * 5
    assert guided == ([1] * 5 if reuse else [1, 1, 1, 1, 1, 1, 1, 1])


def test_each_picture_and_each_window_begins_by_computing() -> None:
    pipe, given = sd15_pipe(), inputs("sd15", steps=6)
    with asag_guidance(pipe, every=3, start=0.3, figures=True) as trace:
        pipe(**given)
        pipe(**given)
    assert trace is not None
    computed = [step.number for step in trace.steps if not step.reused]
    assert computed == [2, 5, 8, 11]
    assert [step.number for step in trace.steps if step.reused] == [3, 4, 9, 10]


def test_a_sampler_of_two_calls_a_step_computes_in_the_first_of_them() -> None:
    pipe = sd15_pipe(scheduler=HeunDiscreteScheduler())
    with asag_guidance(pipe, every=2, figures=True) as trace:
        pipe(**inputs("sd15", steps=4))
    assert trace is not None
    assert [step.reused for step in trace.steps] == [False, True] * 3 + [False]


def test_a_scheduler_of_other_noise_is_named() -> None:
    pipe = sd15_pipe()
    pipe.scheduler = EDMEulerScheduler()
    with pytest.raises(UnsupportedModel, match=r"every: above 1 with EDMEulerScheduler .*; allowed: 1, or"):
        latents(pipe, inputs("sd15"), scale=1.5, every=2)
