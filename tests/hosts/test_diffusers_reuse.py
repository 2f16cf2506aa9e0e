"""Perturbed rows that branch off inside the pipeline's own call, against a call of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline
from torch import Tensor

from asag.models.base import UnsupportedModel
from asag.operators import Sinkhorn
from tests.support import snapshot
from tests.tiny_diffusers import (
    PIPES,
    controlnet,
    counted_calls,
    difference,
    inputs,
    latents,
    normal,
    sd15_pipe,
    sd15_unet,
)

# Of the latents' spread, over three steps: batches of other sizes round differently.
BOUND = 2e-4


@pytest.mark.parametrize("kind", PIPES)
@pytest.mark.parametrize("guided", [True, False])
def test_the_picture_is_that_of_a_whole_extra_pass(kind: str, guided: bool) -> None:
    pipe, given = PIPES[kind](), inputs(kind, images=2, guided=guided)
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    plain = latents(pipe, given)
    before = snapshot(denoiser)
    whole = latents(pipe, given, scale=1.5, reuse=False)
    with counted_calls(denoiser) as rows:
        shared = latents(pipe, given, scale=1.5)
    assert difference(shared, whole) < BOUND
    assert difference(shared, plain) > 10 * BOUND
    with counted_calls(denoiser) as unguided_rows:
        latents(pipe, given)
    assert rows == unguided_rows
    assert snapshot(denoiser) == before


@pytest.mark.parametrize("settings", [{"unit": "push", "scale": 0.1}, {"rescale": 0.7}, {"blocks": "out.3-5"}])
def test_settings_mean_the_same(settings: dict[str, Any]) -> None:
    pipe, given = sd15_pipe(), inputs("sd15", images=2)
    whole = latents(pipe, given, **{"scale": 1.5, **settings}, reuse=False)
    assert difference(latents(pipe, given, **{"scale": 1.5, **settings}), whole) < BOUND


def test_controlnets_residuals_count_and_it_runs_once() -> None:
    unet = sd15_unet()
    pipe = sd15_pipe(StableDiffusionControlNetPipeline, unet=unet, controlnet=controlnet(unet))
    given = inputs("sd15") | {"image": normal(1, 3, 256, 256).sigmoid()}
    whole = latents(pipe, given, scale=1.5, reuse=False)
    with counted_calls(pipe.controlnet) as rows:
        shared = latents(pipe, given, scale=1.5)
    assert difference(shared, whole) < BOUND
    assert rows == [2, 2, 2]


def test_what_attention_alone_is_given_takes_a_pass_of_its_own() -> None:
    pipe, given = sd15_pipe(), inputs("sd15", steps=1)
    given["cross_attention_kwargs"] = {"ip_adapter_masks": torch.ones(1)}
    with counted_calls(pipe.unet) as rows:
        latents(pipe, given, scale=1.5)
    assert rows == [2, 1]


def test_an_error_in_the_branch_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, given = sd15_pipe(), inputs("sd15")
    before, plain = snapshot(pipe.unet), latents(pipe, given)

    def fail(*given: Any) -> Tensor:
        raise UnsupportedModel("no such attention")

    with monkeypatch.context() as patch:
        patch.setattr(Sinkhorn, "plain", fail)
        with pytest.raises(UnsupportedModel, match="no such attention"):
            latents(pipe, given, scale=1.5)
    assert snapshot(pipe.unet) == before
    assert torch.equal(latents(pipe, given), plain)
