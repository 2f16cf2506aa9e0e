"""Every sampler of the host."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from .payloads import asag, assert_same, image_request, request
from .server import WebUI

Image = Callable[..., np.ndarray]
# A1111's names. Those that a host lacks skip there; test_other_samplers takes those that only other hosts have.
SAMPLERS = [
    *["DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE", "Euler a", "Euler"],
    *["LMS", "Heun", "DPM2", "DPM2 a", "DPM fast", "Restart", "DDIM", "DDIM CFG++", "PLMS", "UniPC"],
    "LCM",
]


def test_the_list_is_complete(webui: WebUI) -> None:
    if webui.kind != "a1111":
        pytest.skip("the list is A1111's")
    assert {sampler["name"] for sampler in webui.get("/sdapi/v1/samplers")} == {*SAMPLERS, "DPM adaptive"}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampler(webui: WebUI, guidance_works: Image, guided: Image, sampler: str) -> None:
    if sampler not in {each["name"] for each in webui.get("/sdapi/v1/samplers")}:
        pytest.skip("this host lacks it")
    changes = {"sampler_name": sampler, "steps": 4}
    assert_same(guided(**changes), guidance_works(request(**changes)))


def test_cfg_plus_plus(webui: WebUI, guidance_works: Image) -> None:
    """The samplers of Forge's relatives that renoise with the unconditional prediction."""
    names = {sampler["name"] for sampler in webui.get("/sdapi/v1/samplers")} - {*SAMPLERS}
    chosen = sorted(name for name in names if "CFG++" in name)
    if not chosen:
        pytest.skip("this host has no more of them")
    for name in chosen:
        payload = request(sampler_name=name, steps=4)
        if webui.kind == "reforge":
            # They replace what guides; the user is told.
            done = webui.txt2img(**{**payload, "alwayson_scripts": asag()})
            assert_same(done.image, webui.txt2img(**payload).image)
            assert "ASAG: " not in done.infotexts[0]
            assert "ASAG guided 0 steps and left out" in done.infotexts[0]
        else:
            guidance_works(payload)


def test_other_samplers(webui: WebUI, guidance_works: Image, subtests: pytest.Subtests) -> None:
    """Those that A1111 lacks. Samplers for flows: test_neo_models.py."""
    names = {sampler["name"] for sampler in webui.get("/sdapi/v1/samplers")} - {*SAMPLERS, "DPM adaptive"}
    for name in sorted(name for name in names if "CFG++" not in name and not name.endswith(" RF")):
        with subtests.test(name):
            guidance_works(request(sampler_name=name, steps=4))


def test_adaptive_steps(webui: WebUI, guidance_works: Image) -> None:
    if "DPM adaptive" not in {each["name"] for each in webui.get("/sdapi/v1/samplers")}:
        pytest.skip("this host lacks it")
    # It takes some fifty steps whatever it is told, hence the small picture, whose middle is too small to perturb.
    # Without fresh noise (eta 0): with it rounding alone leads to another picture, unguided as well. There CFG 7.000001
    # instead of 7 took 165 model calls instead of 171 and moved a pixel by 19 levels; with eta 0 it moved one by 1.
    payload = request(sampler_name="DPM adaptive", eta=0.0, width=64, height=64)
    guidance_works(payload, blocks="in.1-2")


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M", "DDIM", "PLMS", "UniPC"])
def test_image_to_image(guidance_works: Image, sampler: str) -> None:
    guidance_works(image_request(sampler_name=sampler))


def test_schedulers(webui: WebUI, guidance_works: Image, subtests: pytest.Subtests) -> None:
    names = [scheduler["label"] for scheduler in webui.get("/sdapi/v1/schedulers")]
    for name in names:
        with subtests.test(name):
            guidance_works(request(sampler_name="DPM++ 2M", scheduler=name))
