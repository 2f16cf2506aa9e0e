"""ControlNet and IP-Adapter units beside ASAG."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import requests

from .payloads import asag, assert_differ, assert_same, control_unit, image_request
from .payloads import request as small
from .server import WebUI

Image = Callable[..., np.ndarray]


@pytest.fixture(scope="session")
def control_models(webui: WebUI) -> list[str]:
    try:
        return webui.get("/controlnet/model_list")["model_list"]
    except requests.HTTPError:
        pytest.skip("ControlNet isn't installed")


@pytest.fixture(
    scope="module", params=["canny", "ip-adapter", "reference_only", "reference_adain", "tile_colorfix"], autouse=True
)
def unit(request: pytest.FixtureRequest, webui: WebUI, control_models: list[str]) -> dict[str, Any]:
    """The script value of one unit that changes an SD1.5 image."""
    if request.param.startswith("reference"):
        script = control_unit(request.param)
    else:
        wanted, module = {"canny": ("control", "canny"), "ip-adapter": ("ip-adapter", "ip-adapter_clip_h")}[
            request.param
        ]
        name = next((each for each in control_models if wanted in each and "sd15" in each), None)
        if name is None:
            pytest.skip(f"no SD1.5 model called *{wanted}*sd15*")
        script = control_unit(module, name)
    # ControlNet leaves attributes of its own on the modules when it is first used: before the guard looks at them. And
    # the first image to image of a unit isn't quite the one that later requests give, without ASAG too.
    webui.txt2img(**small(steps=1, alwayson_scripts=script))
    webui.img2img(**image_request(steps=1, alwayson_scripts=script))
    webui.txt2img(**small(steps=1))
    return script


def test_unit(webui: WebUI, plain: Image, guidance_works: Image, unit: dict[str, Any]) -> None:
    payload = small(alwayson_scripts=unit)
    controlled = webui.txt2img(**payload).image
    # A unit that can't load is only a line in the log; its image is the plain one.
    assert_differ(controlled, plain())
    assert_same(webui.txt2img(**{**payload, "alwayson_scripts": {**unit, **asag(scale=0)}}).image, controlled)
    guidance_works(payload)
    assert_same(webui.txt2img(**small()).image, plain())


@pytest.mark.parametrize("method", ["pag", "seg", "uniform", "similarity"])
def test_methods_with_keys_of_another_image(guidance_works: Image, unit: dict[str, Any], method: str) -> None:
    # reference_only appends the reference's tokens to the keys of every self-attention: more keys than queries.
    if module_of(unit) != "reference_only":
        pytest.skip("only reference_only appends keys")
    guidance_works(small(alwayson_scripts=unit, steps=2), method=method, blocks="in.1, mid, out.11")


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "a cat AND a dog :0.5", "batch_size": 2},
        {"override_settings": {"batch_cond_uncond": False}},
        {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.7},
        {"sampler_name": "DDIM"},
    ],
    ids=str,
)
def test_requests(guidance_works: Image, unit: dict[str, Any], changes: dict[str, Any]) -> None:
    guidance_works(small(alwayson_scripts=unit, **{"steps": 2, **changes}))


def test_image_to_image(guidance_works: Image, unit: dict[str, Any]) -> None:
    guidance_works(image_request(alwayson_scripts=unit))


@pytest.mark.parametrize("mode", ["ControlNet is more important", "My prompt is more important"])
def test_control_modes(guidance_works: Image, unit: dict[str, Any], mode: str) -> None:
    # These treat conditional and unconditional rows differently, by marks inside the conditioning.
    args = {**unit["ControlNet"]["args"][0], "control_mode": mode}
    guidance_works(small(alwayson_scripts={"ControlNet": {"args": [args]}}, steps=2))


def module_of(unit: dict[str, Any]) -> str:
    return unit["ControlNet"]["args"][0]["module"]
