"""SDXL: its conditionings are dicts, its middle block has several layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from .payloads import asag, assert_differ, assert_same, image_request, request
from .server import WebUI

Image = Callable[..., np.ndarray]
LONG = ", ".join(["a cat on a wooden chair by the window"] * 12)  # 2 chunks of 75 tokens


@pytest.fixture(scope="module", autouse=True)
def checkpoint(webui: WebUI) -> Iterator[None]:
    """Switches the model for this file; once, as each switch takes seconds."""
    if webui.sdxl is None:
        pytest.skip("no SDXL checkpoint (ASAG_WEBUI_SDXL)")
    webui.set_options(sd_model_checkpoint=webui.sdxl)
    webui.txt2img(**request(steps=1))  # what the host loads and sets once, before the guard looks
    assert "label_emb" in " ".join(webui.fingerprint())
    yield
    webui.set_options(sd_model_checkpoint=webui.sd15)
    webui.txt2img(**request(steps=1))  # Forge loads it only now


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_size": 2},
        {"prompt": "a cat AND a dog :0.5", "batch_size": 2},
        {"prompt": "a [cat:dog:0.5] on a [chair|table]", "steps": 4},
        {"prompt": LONG},
        {"cfg_scale": 1},
        {"sampler_name": "DDIM"},
        {"sampler_name": "DPM++ 2M SDE"},
        {"override_settings": {"s_min_uncond": 100, "s_min_uncond_all": True}},
        {"override_settings": {"batch_cond_uncond": False}},
        {
            "override_settings": {"pad_cond_uncond": True},
            "negative_prompt": LONG,
        },
        {"width": 200, "height": 136},
        {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.7},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_requests(guidance_works: Image, changes: dict[str, Any]) -> None:
    guidance_works(request(**{"steps": 2, **changes}))


def test_image_to_image(guidance_works: Image) -> None:
    guidance_works(image_request(steps=3))


@pytest.mark.parametrize("method", ["pag", "seg", "uniform", "similarity"])
def test_methods(guidance_works: Image, method: str) -> None:
    guidance_works(request(steps=2, width=136, height=200), method=method)


def test_every_layer_of_a_block_counts(guided: Image) -> None:
    first, second, whole = (guided({"blocks": blocks, "scale": 100}, steps=2) for blocks in ("mid.0", "mid.1", "mid"))
    assert_differ(first, second)
    assert_differ(second, whole)
    assert_differ(first, whole)


@pytest.mark.logs_errors
def test_refusal_names_the_blocks_of_this_model(webui: WebUI) -> None:
    answer = webui.txt2img(**request(alwayson_scripts=asag(blocks="in.1")))
    assert answer.status == 422
    assert "this model has: in.4" in str(answer.body["detail"])


def test_checkpoint_by_request(webui: WebUI) -> None:
    # Guided requests that switch the model there and back: each is guided with the model that it runs.
    def images(name: str) -> tuple[np.ndarray, np.ndarray]:
        switch = {"override_settings": {"sd_model_checkpoint": name}, "override_settings_restore_afterwards": False}
        payload = request(steps=2, **switch)
        return webui.txt2img(**payload, alwayson_scripts=asag()).image, webui.txt2img(**payload).image

    first, other, again = images(webui.sdxl), images(webui.sd15), images(webui.sdxl)
    assert_differ(*first)
    assert_differ(*other)
    for one, two in zip(first, again, strict=True):
        assert_same(one, two)
