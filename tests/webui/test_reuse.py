"""Prefix reuse in a real host: the same image in less work, whole passes where it can't be, and that is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from .payloads import REUSE_ROUNDING, asag, assert_differ, assert_same, image_request, largest_difference, request
from .server import WebUI

Image = Callable[..., np.ndarray]
SIZE = {"width": 256, "height": 256}


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({}, {}),
        ({"blocks": "in.1"}, {}),
        ({"blocks": "out.11"}, {}),
        ({"blocks": "all"}, {}),
        ({"method": "pag"}, {}),
        ({"unit": "push", "scale": 0.5}, {}),
        ({}, {"cfg_scale": 1}),
        ({}, {"batch_size": 2}),
        ({}, {"prompt": "a cat AND a dog :0.5"}),
        ({}, {"negative_prompt": "a long negative prompt, " * 20}),
        ({}, {"sampler_name": "DDIM"}),
        ({}, {"sampler_name": "Heun"}),
        ({}, {"width": 208, "height": 144}),
    ],
    ids=str,
)
def test_the_image_is_that_of_a_whole_pass(
    webui: WebUI, guided: Image, settings: dict[str, Any], changes: dict[str, Any]
) -> None:
    asked = {**SIZE, "steps": 4, **changes}
    whole = guided({**settings, "reuse": False}, **asked)
    assert webui.last_reuse()["shared"] == 0
    shared = guided(settings, **asked)
    told = webui.last_reuse()
    assert told["shared"] >= 3, told  # DDIM takes a step less in Forge
    assert told["whole"] == 0, told
    assert largest_difference(shared, whole) <= REUSE_ROUNDING
    assert_same(guided(settings, **asked), shared)


def test_image_to_image_and_the_hires_pass(webui: WebUI) -> None:
    hires = request(enable_hr=True, hr_scale=1.5, hr_upscaler="Latent", denoising_strength=0.7)
    for ask, payload in ((webui.img2img, image_request()), (webui.txt2img, hires)):
        images = [ask(**{**payload, "alwayson_scripts": asag(reuse=reuse)}).image for reuse in (True, True, False)]
        assert largest_difference(images[1], images[2]) <= REUSE_ROUNDING


def test_only_steps_in_the_window_branch(webui: WebUI, guided: Image) -> None:
    guided({"start": 0.5}, steps=4)
    assert webui.last_reuse() == {"shared": 2, "whole": 0, "why": ""}


@pytest.mark.logs_errors
def test_a_branch_that_fails_costs_time_alone(webui: WebUI, guided: Image, plain: Image) -> None:
    expected = guided({"reuse": False}, steps=4)
    webui.inject_failure("unet", 2)
    image = guided({}, steps=4)
    # The probe's hook is code of others: the step before is checked, and may be the one that fails.
    assert webui.last_reuse()["whole"] >= 3
    assert "the failure that was asked for" in webui.last_reuse()["why"]
    assert largest_difference(image, expected) <= REUSE_ROUNDING
    assert_differ(image, plain(steps=4))
