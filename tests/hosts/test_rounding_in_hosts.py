"""What each host compares with rounding, against the definition: δ and the conditional prediction of each step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asag.hosts.diffusers_guider import AdversarialSinkhornAttentionGuidance
from asag.hosts.diffusers_pipeline import asag_guidance
from asag.operators import Sinkhorn
from asag.rounding import Rounding
from tests.hosts import a1111_double, forge_double, test_a1111, test_forge_arithmetic
from tests.hosts.guided import FIRST, guided
from tests.hosts.reference import Definition, real_unet
from tests.hosts.test_diffusers_every import denoiser_of, recorded_calls
from tests.hosts.test_diffusers_guider import drive, predictions
from tests.tiny_diffusers import PIPES, inputs, latents, sd3_transformer, sd15_pipe

HOSTS = {"a1111": (test_a1111, a1111_double), "forge": (test_forge_arithmetic, forge_double)}
OPTIONS = [("a1111", {}), ("a1111", {"denoiser": "noise"}), ("forge", {})]


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return real_unet()


@pytest.fixture
def host(request: pytest.FixtureRequest, unet: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Any:
    name, options = request.param
    module, double = HOSTS[name]
    for host in module.host.__wrapped__(unet, monkeypatch):
        host.new_options = lambda: double.Options(**options)
        yield host


def size(values: Tensor) -> float:
    return float(values.square().sum().sqrt())


@pytest.mark.parametrize("reuse", [True, False], ids=["shared", "whole"])
@pytest.mark.parametrize("host", OPTIONS, indirect=True)
def test_the_push_and_the_prediction_are_those_of_the_step(
    host: Any, reuse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Tensor, Tensor, torch.dtype]] = []
    monkeypatch.setattr(Rounding, "add", lambda self, *values: seen.append(values))
    guided(host, host.new_options(), reuse=reuse)
    assert len(seen) == len(FIRST)
    for (delta, predicted, dtype), x, timestep in zip(seen, FIRST, host.options.timesteps, strict=True):
        assert dtype == torch.float64
        for image, prompts in enumerate(host.prompts):
            guided_noise, _, noise = Definition(host.unet, prompts, cfg=1.0).step(x[image], timestep, 1.0)
            found, expected = size(delta[image]) / size(predicted[image]), size(guided_noise - noise) / size(noise)
            assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("host", OPTIONS, indirect=True)
def test_a_lost_push_is_told_under_the_picture(host: Any, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    add = Rounding.add
    monkeypatch.setattr(
        Rounding, "add", lambda self, delta, predicted, _: add(self, 1e-6 * delta, predicted, torch.float16)
    )
    guided(host, host.new_options(), every=every)
    (told,) = host.comments
    assert told.startswith(
        f"ASAG's push was hardly larger than the rounding of float16 in {2 // every} of {2 // every} guided"
    )


@pytest.mark.parametrize("host", OPTIONS, indirect=True)
def test_a_push_that_isnt_lost_has_no_note(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    add = Rounding.add
    monkeypatch.setattr(Rounding, "add", lambda self, delta, predicted, _: add(self, delta, predicted, torch.float16))
    guided(host, host.new_options())
    assert host.comments == []


# diffusers -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("reuse", [True, False], ids=["shared", "whole"])
@pytest.mark.parametrize("kind", PIPES)
def test_in_a_pipeline_they_are_those_of_the_call(kind: str, reuse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor, torch.dtype]] = []
    monkeypatch.setattr(
        Rounding, "add", lambda self, *values: seen.append((*(each.clone() for each in values[:2]), values[2]))
    )
    pipe, given = PIPES[kind](), inputs(kind, images=2, steps=2)
    if kind == "flux":
        given["true_cfg_scale"] = 1.0
    with recorded_calls(pipe) as calls:
        latents(pipe, given, scale=2.0, reuse=reuse)
    assert len(seen) == len(calls) == 2
    for (delta, predicted, dtype), (args, kwargs, guided_rows) in zip(seen, calls, strict=True):
        plain = denoiser_of(pipe)(*args, **kwargs)[0]
        assert dtype == torch.float64
        torch.testing.assert_close(predicted, plain[-2:], rtol=0, atol=1e-9)
        torch.testing.assert_close(2.0 * delta, (guided_rows - plain)[-2:], rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-6, 1.0])
def test_in_a_pipeline_a_lost_push_is_logged_once_a_picture(
    scale: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add = Rounding.add
    monkeypatch.setattr(
        Rounding, "add", lambda self, delta, predicted, _: add(self, scale * delta, predicted, torch.bfloat16)
    )
    pipe, given = sd15_pipe(), inputs("sd15", steps=2)
    with asag_guidance(pipe):
        pipe(**given)
        pipe(**given)
    logged = [message for message in caplog.messages if "rounding of bfloat16 in 2 of 2 guided steps" in message]
    assert len(logged) == (2 if scale < 1 else 0)


@torch.no_grad()
@pytest.mark.usefixtures("double")
def test_in_the_guider_they_are_the_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor, torch.dtype]] = []
    monkeypatch.setattr(Rounding, "add", lambda self, *values: seen.append(values))
    model = sd3_transformer()
    cond, _, weakened = predictions(model, "joint.2", Sinkhorn())
    drive(AdversarialSinkhornAttentionGuidance(4.0), model)
    ((delta, predicted, dtype),) = seen
    assert dtype == torch.float64
    torch.testing.assert_close(delta, cond - weakened)
    torch.testing.assert_close(predicted, cond)
