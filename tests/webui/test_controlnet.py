"""ControlNet and IP-Adapter units beside ASAG."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import requests

from .payloads import ROUNDING, asag, assert_differ, assert_same, control_unit, image_request, largest_difference
from .payloads import request as small
from .server import WebUI, encode_image

Image = Callable[..., np.ndarray]


@pytest.fixture(scope="session")
def control_models(webui: WebUI) -> list[str]:
    try:
        return webui.get("/controlnet/model_list")["model_list"]
    except requests.HTTPError:
        pytest.skip("ControlNet isn't installed")


CONTROL, IP_ADAPTER = ("control", "cn15"), ("ip-adapter", "ip15")
UNITS = {  # unit: what its module is called, in A1111's ControlNet or in Forge's, and its model, if it takes one
    "canny": (["canny"], CONTROL),
    "tile_colorfix": (["tile_colorfix"], CONTROL),
    "ip-adapter": (["ip-adapter_clip_sd15", "CLIP-ViT-H (IPAdapter)"], IP_ADAPTER),
    "inpaint_only": (["inpaint_only"], CONTROL),
    "reference_only": (["reference_only"], None),
    "reference_adain": (["reference_adain"], None),
}

# What Neo of August 2026 logs.
NO_IMAGE_ENCODER = "property 'device' of 'CLIPVisionModelWithProjection' object has no setter"


@pytest.fixture(scope="module", params=UNITS, autouse=True)
def unit(request: pytest.FixtureRequest, webui: WebUI, control_models: list[str]) -> dict[str, Any]:
    """The script value of one unit that changes an SD1.5 image."""
    modules, patterns = UNITS[request.param]
    module = next((each for each in webui.get("/controlnet/module_list")["module_list"] if each in modules), None)
    if module is None:
        pytest.skip(f"no module called {' or '.join(modules)}")
    name = "None"
    if patterns is not None:
        fitting = (each for each in control_models if "15" in each and any(word in each for word in patterns))
        name = next(fitting, None)
        if name is None:
            pytest.skip(f"no SD1.5 model called *{' or '.join(patterns)}*")
    # Forge's reference leaves out layers with few channels, the fewer the heavier it is: all count from 2 on.
    changes = {"weight": 2.0} if "reference" in module and webui.kind != "a1111" else {}
    if module == "inpaint_only":
        # The left half may change.
        mask = np.zeros((128, 128, 3), np.uint8)
        mask[:, :64] = 255
        changes = {"mask_image": encode_image(mask)}
    script = control_unit(module, name, **changes)
    # ControlNet leaves attributes of its own on the modules when it is first used: before the guard looks at them.
    if webui.txt2img(**small(steps=1, alwayson_scripts=script)).status != 200:
        pytest.skip(f"the host itself fails with {module} at this size")
    if request.param == "ip-adapter" and NO_IMAGE_ENCODER in webui.log:
        pytest.skip("Neo's own IP-Adapter fails: it can't load its image encoder")
    webui.txt2img(**small(steps=1))
    return script


def test_unit(webui: WebUI, plain: Image, guidance_works: Image, unit: dict[str, Any]) -> None:
    payload = small(alwayson_scripts=unit)
    controlled = webui.txt2img(**payload).image
    if module_of(unit) == "reference_adain" and largest_difference(controlled, plain()) < ROUNDING:
        pytest.skip("reForge's changes nothing in so narrow a model")
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


def test_image_to_image(webui: WebUI, guidance_works: Image, unit: dict[str, Any]) -> None:
    payload = image_request(alwayson_scripts=unit)
    # A1111 encodes the first image with a random number that depends on how many the request before it drew: the
    # first of equal requests may differ from the others, without ASAG as well.
    webui.img2img(**payload)
    guidance_works(payload)


@pytest.mark.parametrize("mode", ["ControlNet is more important", "My prompt is more important"])
def test_control_modes(guidance_works: Image, unit: dict[str, Any], mode: str) -> None:
    # These treat conditional and unconditional rows differently, by marks inside the conditioning.
    args = {**unit["ControlNet"]["args"][0], "control_mode": mode}
    guidance_works(small(alwayson_scripts={"ControlNet": {"args": [args]}}, steps=2))


def test_several_units(webui: WebUI, guidance_works: Image, control_models: list[str], unit: dict[str, Any]) -> None:
    if module_of(unit) != "reference_only":
        pytest.skip("once is enough: with the unit that does most")
    model = next((each for each in control_models if "15" in each and any(word in each for word in CONTROL)), None)
    if model is None:
        pytest.skip("no SD1.5 model for a second unit")
    args = [*unit["ControlNet"]["args"], *control_unit("canny", model)["ControlNet"]["args"]]
    one, both = (small(steps=2, alwayson_scripts=each) for each in (unit, {"ControlNet": {"args": args}}))
    assert_differ(webui.txt2img(**both).image, webui.txt2img(**one).image)
    guidance_works(both)


def module_of(unit: dict[str, Any]) -> str:
    return unit["ControlNet"]["args"][0]["module"]
