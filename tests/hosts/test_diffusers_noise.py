"""Windows by noise in diffusers: the guided steps are those that the scheduler's own σ say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
)

from asag.hosts.diffusers_guider import AdversarialSinkhornAttentionGuidance
from asag.hosts.diffusers_pipeline import asag_guidance
from asag.models.base import UnsupportedModel
from asag.settings import SettingsError
from tests.tiny_diffusers import PIPES, inputs, normal, sd15_pipe

STEPS = 8


def guided_steps(pipe: Any, given: dict[str, Any], **window: Any) -> list[int]:
    with asag_guidance(pipe, figures=True, **window) as trace:
        pipe(**given)
    return [step.number for step in trace.steps]


def between(sigmas: list[float], start: float, end: float) -> list[int]:
    return [step for step, sigma in enumerate(sigmas) if start >= sigma > end]


@pytest.mark.parametrize("kind", PIPES)
def test_levels_are_those_of_the_scheduler(kind: str) -> None:
    """In k-diffusion's units for UNets, the share of noise in flow-matching models."""
    pipe, given = PIPES[kind](), inputs(kind, steps=STEPS)
    if kind == "sd15":
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
    pipe(**given)
    sigmas = getattr(pipe.scheduler, "sigmas", None)
    if sigmas is None:
        alphas = pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps]
        sigmas = ((1 - alphas) / alphas).sqrt()
    sigmas = sigmas.tolist()[:STEPS]
    start, end = ((sigmas[place] + sigmas[place + 1]) / 2 for place in (1, 4))
    assert between(sigmas, start, end) == [2, 3, 4]
    assert guided_steps(pipe, given, start=f"sigma {start:.6f}", end=f"sigma {end:.6f}") == [2, 3, 4]
    # Two pictures with one guidance: the second reads its own timesteps.
    with asag_guidance(pipe, figures=True, end=f"sigma {end:.6f}") as trace:
        pipe(**given)
        pipe(**given | {"num_inference_steps": 2 * STEPS})
    first, second = ([step.number - each.begins for step in each.steps] for each in trace.passes)
    assert first == [0, 1, 2, 3, 4]
    assert len(second) > len(first)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_percentages_are_of_the_training_timesteps(scheduler: Any) -> None:
    pipe, given = sd15_pipe(), inputs("sd15", steps=STEPS)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    pipe(**given)
    shares = [1 - float(timestep) / 999 for timestep in pipe.scheduler.timesteps]
    expected = [step for step, share in enumerate(shares) if 0.2 <= share < 0.65]
    assert 0 < len(expected) < STEPS
    assert guided_steps(pipe, given, start="20%", end="65%") == expected


def test_a_picture_that_begins_in_the_middle_begins_at_its_own_noise() -> None:
    pipe = sd15_pipe(StableDiffusionImg2ImgPipeline)
    given = inputs("sd15", steps=STEPS) | {"image": normal(1, 4, 32, 32), "strength": 0.5}
    for name in ("latents", "height", "width"):
        given.pop(name)
    pipe(**given, generator=torch.Generator().manual_seed(0))
    shares = [1 - float(timestep) / 999 for timestep in pipe.scheduler.timesteps][STEPS // 2 :]
    expected = [step for step, share in enumerate(shares) if share >= 0.7]
    assert 0 < len(expected) < STEPS // 2
    assert guided_steps(pipe, given | {"generator": torch.Generator().manual_seed(0)}, start="70%") == expected


def test_a_scheduler_that_doesnt_say_its_noise_is_named() -> None:
    pipe = sd15_pipe()
    pipe.scheduler = EDMEulerScheduler()
    missing = pytest.raises(UnsupportedModel, match="start and end by noise with EDMEulerScheduler; allowed: fractions")
    with missing, asag_guidance(pipe, end="60%"):
        pipe(**inputs("sd15"))


def test_the_guider_takes_percentages_and_no_levels() -> None:
    guider = AdversarialSinkhornAttentionGuidance(1.0, 2.0, adversarial_guidance_start="20%")
    found = []
    for step, timestep in enumerate((999, 801, 799, 100)):
        guider.set_state(step, 4, torch.tensor(timestep))
        found.append(guider.num_conditions)
    assert found == [1, 1, 2, 2]
    with pytest.raises(
        SettingsError, match=r"adversarial_guidance_stop: sigma 2; allowed: fractions of the steps or per"
    ):
        AdversarialSinkhornAttentionGuidance(adversarial_guidance_stop="σ 2")
