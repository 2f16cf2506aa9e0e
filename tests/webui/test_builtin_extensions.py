"""What Forge, reForge and Neo bring with them and put on the same model patcher: other guidance, other attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from .payloads import ROUNDING, asag, assert_same, largest_difference
from .payloads import request as small
from .server import WebUI

Image = Callable[..., np.ndarray]

# The script's title, up to what hosts add to it, and the arguments that switch it on, by their place.
ON = {0: True}
SCRIPTS: dict[str, dict[int, Any]] = {
    "PerturbedAttentionGuidance Integrated": ON,
    "SelfAttentionGuidance Integrated": ON,
    "FreeU Integrated": ON,
    "DynamicThresholding (CFG-Fix) Integrated": {0: True, 1: 3.0},
    "LatentModifier Integrated": {0: True, 1: 10.0},
    "MultiDiffusion Integrated": {0: True, 2: 128, 3: 128, 4: 32},
    "StyleAlign Integrated": ON,
    "Kohya HRFix Integrated": ON,
    "HyperTile Integrated": {0: True, 1: 128},
    "RescaleCFG": {0: 0.7},
    "RescaleCFG for reForge": {0: True},
    "MaHiRo": ON,
    "Mahiro CFG for reForge": ON,
    '"APG\'s now your CFG" and Guidance Limiter for reForge': ON,
}


@pytest.fixture(scope="module")
def scripts(webui: WebUI) -> dict[str, dict[str, Any]]:
    """Every always-on script of txt2img by its title in small letters."""
    if webui.kind == "a1111":
        pytest.skip("these are built into Forge and its relatives")
    return {
        each["name"]: each
        for each in webui.get("/sdapi/v1/script-info")
        if each["is_alwayson"] and not each["is_img2img"]
    }


@pytest.fixture(params=SCRIPTS)
def script(request: pytest.FixtureRequest, scripts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The value of `alwayson_scripts` that switches one on."""
    wanted = request.param.lower()
    name = next((name for name in sorted(scripts) if name == wanted or name.startswith(wanted + " (")), None)
    if name is None:
        pytest.skip(f"no {request.param} in this host")
    args = [argument["value"] for argument in scripts[name]["args"]]
    for place, value in SCRIPTS[request.param].items():
        args[place] = value
    return {name: {"args": args}}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_size": 2, "prompt": "a cat AND a dog :0.5"},
        {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.7, "hr_cfg": 5},
    ],
    ids=["plain", "batch and AND", "hires"],
)
def test_beside(webui: WebUI, plain: Image, guidance_works: Image, script: dict[str, Any], changes: Any) -> None:
    changes = {"width": 192, "height": 192, "steps": 2, **changes}
    payload = small(**changes, alwayson_scripts=script)
    guidance_works(payload, scale=40, blocks="in.4, mid, out.4")
    alone = webui.txt2img(**payload).image
    assert_same(webui.txt2img(**{**payload, "alwayson_scripts": {**script, **asag(scale=0)}}).image, alone)
    if largest_difference(alone, plain(**changes)) < ROUNDING:
        pytest.skip("guidance works, but the script by itself changes nothing in so narrow a model")
