"""SageAttention and FlashAttention in Forge Neo: its own code around them, with torch's attention as their kernel.

A probe puts them there (probe/scripts/asag_packages.py). The checkpoints are make_checkpoints_forge.py's; those that
aren't there skip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from .payloads import asag, request
from .server import WebUI

Image = Callable[..., np.ndarray]

# The packages attend in half precision, and numbers of rows differ where work is shared.
HALF_ROUNDING = 16
KINDS = ["sd15", "sdxl", "flux", "zimage", "qwen", "wan", "krea", "anima"]


def small(**changes: Any) -> dict[str, Any]:
    return request(**{"steps": 2, "scheduler": "Simple", "distilled_cfg_scale": 3.5, **changes})


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, webui: WebUI) -> Iterator[str]:
    name = f"tiny-{request.param}.safetensors"
    if webui.kind != "neo":
        pytest.skip("this host has no such packages")
    if not (webui.folder / "models" / "Stable-diffusion" / name).exists():
        pytest.skip(f"this host has no {name}")
    webui.set_options(sd_model_checkpoint=name)
    webui.txt2img(**small())  # the host loads it now, and makes what it makes once
    yield request.param
    webui.set_options(sd_model_checkpoint=webui.sd15)
    webui.txt2img(**small(steps=1))


@pytest.fixture(params=["sage", "flash"])
def package(request: pytest.FixtureRequest, webui: WebUI, kind: str) -> Iterator[str]:
    assert webui.post("/asag-probe/package", name=request.param).status == 200
    yield request.param
    webui.post("/asag-probe/package")


def calls(webui: WebUI, payload: dict[str, Any]) -> int:
    before = webui.get("/asag-probe/package")["calls"]
    assert webui.txt2img(**payload).status == 200
    return int(webui.get("/asag-probe/package")["calls"]) - before


def test_guidance(webui: WebUI, guidance_works: Image, package: str) -> None:
    """The layers that aren't weakened attend by the package."""
    guidance_works(small(), reuse_rounding=HALF_ROUNDING, scale=100)
    assert calls(webui, small()) > 0
    assert calls(webui, small(alwayson_scripts=asag(scale=100))) > 0
    assert webui.last_reuse() == {"shared": 2, "whole": 0, "why": ""}
