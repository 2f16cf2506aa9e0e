"""Extensions of others beside ASAG, as far as the host has them: what each does, and what ASAG does, is done once."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import requests

from .payloads import FAINT, ROUNDING, asag, assert_differ, assert_same, image_request, largest_difference
from .payloads import request as small
from .server import Answer, WebUI, decode_image

Image = Callable[..., np.ndarray]

# Title; what switches it on: the value of a control by its label, and how many controls after it; fields of a request.
EXTENSIONS: dict[str, tuple[str, dict[tuple[str, int], Any], dict[str, Any]]] = {
    "Detail Daemon": (
        "Detail Daemon",
        {("Detail Daemon", 0): True, ("Active", 0): True, ("Start", 0): 0.0, ("End", 0): 1.0},
        {},
    ),
    "CD Tuner": (
        "CD Tuner",
        {("CD Tuner", 0): True, ("Detail(d1)", 0): 5.0, ("Contrast(con1)", 0): 5.0, ("Strength", 1): []},
        {},
    ),
    "incantations: PAG": ("Incantations", {("PAG Scale", -2): True, ("PAG Scale", 0): 8.0}, {}),
    "incantations: SEG": ("Incantations", {("SEG Blur Sigma", -1): True}, {}),
    "incantations: CFG": ("Incantations", {("Enable CFG Scheduler", 0): True, ("CFG Schedule Type", 0): "Linear"}, {}),
    "SAG": ("Self Attention Guidance", {("Enabled", 0): True, ("Scale", 0): 5.0}, {}),
    "FreeU": ("FreeU", {("Enable", 0): True}, {}),
    "CADS": ("CADS", {("Active", 0): True}, {}),
    "SEGA": ("Semantic Guidance", {("Active", 0): True, ("Prompt", 0): "red", ("Warmup Period", 0): 0}, {}),
    "Forge Couple": ("Forge Couple", {("Enable", 0): True}, {"prompt": "a cat\na dog"}),
    "pamparamm: PAG": ("Perturbed-Attention Guidance", {("Enabled", 0): True}, {}),
    "pamparamm: SEG": ("Smoothed Energy Guidance", {("Enabled", 0): True}, {}),
    "pamparamm: SWG": ("Sliding Window Guidance", {("Enabled", 0): True, ("Sigma End", 0): -1.0}, {}),
}


def switched_on(webui: WebUI, title: str, changes: dict[tuple[str, int], Any]) -> dict[str, Any]:
    """The value of `alwayson_scripts` for a script with its own defaults but for the changes; skips without it."""
    found = [
        each
        for each in webui.get("/sdapi/v1/script-info")
        if f"{each['name']} v".startswith(f"{title.lower()} v") and each["is_alwayson"] and not each["is_img2img"]
    ]
    if not found:
        pytest.skip(f"{title} isn't installed")
    labels = [each["label"] for each in found[0]["args"]]
    args = [each["value"] for each in found[0]["args"]]
    for (label, after), value in changes.items():
        args[labels.index(label) + after] = value
    return {found[0]["name"]: {"args": args}}


@pytest.fixture(scope="module", params=EXTENSIONS)
def payload(request: pytest.FixtureRequest, webui: WebUI) -> dict[str, Any]:
    """A request with one of them on."""
    title, changes, fields = EXTENSIONS[request.param]
    payload = small(steps=2, alwayson_scripts=switched_on(webui, title, changes), **fields)
    # Some leave attributes of their own on the modules when they are first used: before the guard looks at them.
    if webui.txt2img(**payload).status != 200:
        pytest.skip(f"the host itself fails with {request.param}")
    webui.txt2img(**small(steps=1))
    return payload


def guided(webui: WebUI, payload: dict[str, Any], **settings: Any) -> Answer:
    others = payload.get("alwayson_scripts", {})
    ask = webui.img2img if "init_images" in payload else webui.txt2img
    return ask(**{**payload, "alwayson_scripts": {**others, **asag(**settings)}})


def test_each_does_its_part_once(webui: WebUI, plain: Image, payload: dict[str, Any]) -> None:
    fields = {name: payload[name] for name in ("steps", "prompt")}
    without = plain(**fields)
    alone = webui.txt2img(**payload).image
    strong = guided(webui, payload)
    assert_differ(strong.image, alone)
    assert "ASAG: scale" in strong.infotexts[0]
    assert largest_difference(guided(webui, payload, scale=FAINT).image, alone) < ROUNDING
    assert_same(guided(webui, payload, scale=0).image, alone)
    assert_same(webui.txt2img(**small(**fields)).image, without)
    if largest_difference(alone, without) < ROUNDING:
        pytest.skip("guidance works, but the extension by itself changes nothing in so narrow a model")


@pytest.mark.parametrize("changes", [{}, {"batch_size": 2, "negative_prompt": "a long one, " * 20}], ids=str)
def test_forge_couple_shares_work(
    webui: WebUI, guidance_works: Callable[..., np.ndarray], changes: dict[str, Any]
) -> None:
    title, switches, fields = EXTENSIONS["Forge Couple"]
    payload = small(steps=2, alwayson_scripts=switched_on(webui, title, switches), **fields, **changes)
    guidance_works(payload)
    guided(webui, payload)
    assert webui.last_reuse()["whole"] == 0


def test_dynamic_prompts(webui: WebUI, plain: Image) -> None:
    script = switched_on(webui, "Dynamic Prompts", {("Dynamic Prompts enabled", 0): True})
    payload = small(steps=2, prompt="a {cat|dog|bird} on a chair", n_iter=2, alwayson_scripts=script)
    alone, strong = webui.txt2img(**payload), guided(webui, payload)
    assert "{" not in alone.infotexts[0]
    for one, other, text, before in zip(strong.images, alone.images, strong.infotexts, alone.infotexts, strict=True):
        assert_differ(one, other)
        assert text.splitlines()[0] == before.splitlines()[0]
        assert "ASAG: scale" in text
    for one, other in zip(guided(webui, payload, scale=0).images, alone.images, strict=True):
        assert_same(one, other)


def test_ultimate_upscale(webui: WebUI) -> None:
    if "ultimate sd upscale" not in webui.get("/sdapi/v1/scripts")["img2img"]:
        pytest.skip("Ultimate SD upscale isn't installed")
    args = [None, 128, 128, 8, 32, 64, 0.35, 32, 0, False, 0, False, 8, 0, 1, 192, 192, 2]
    payload = image_request(steps=2, script_name="ultimate sd upscale", script_args=args)
    webui.img2img(**payload)
    alone, strong = webui.img2img(**payload), guided(webui, payload)
    assert alone.image.shape[:2] == (192, 192)
    assert_differ(strong.image, alone.image)
    assert "ASAG: scale" in strong.infotexts[0]
    assert largest_difference(guided(webui, payload, scale=FAINT).image, alone.image) < ROUNDING
    assert_same(guided(webui, payload, scale=0).image, alone.image)


@pytest.fixture
def adetailer_names(webui: WebUI) -> Iterator[str]:
    """ADetailer's setting of the scripts that run in its inpainting: the beginning of its default."""
    switched_on(webui, "ADetailer", {})
    names = "dynamic_prompting,dynamic_thresholding"
    webui.set_options(ad_script_names=names)
    yield names
    webui.set_options(ad_script_names=names)


def test_adetailer(webui: WebUI, plain: Image, adetailer_names: str) -> None:
    models = webui.get("/adetailer/v1/ad_model")["ad_model"]
    model = next((each for each in models if "tiny" in each), None)
    if model is None:
        pytest.skip("no detector called *tiny* in models/adetailer")
    detector = {"ad_model": model, "ad_confidence": 0.0, "ad_mask_k": 1, "ad_denoising_strength": 0.9}
    payload = small(steps=2, alwayson_scripts={"ADetailer": {"args": [True, False, detector]}})
    alone = webui.txt2img(**payload)
    assert_differ(alone.image, plain(steps=2))
    outside = guided(webui, payload)
    assert "asag is not among" in outside.infotexts[0]
    webui.set_options(ad_script_names=f"{adetailer_names},asag")
    both = guided(webui, payload)
    assert "asag is not among" not in both.infotexts[0]
    assert "ASAG: scale" in both.infotexts[0]
    assert_differ(outside.image, alone.image)
    assert_differ(both.image, outside.image)
    assert largest_difference(guided(webui, payload, scale=FAINT).image, alone.image) < ROUNDING
    assert_same(guided(webui, payload, scale=0).image, alone.image)


def test_agent_scheduler(webui: WebUI, guided: Image) -> None:
    payload = small(steps=2, alwayson_scripts=asag())
    queued = webui.post("/agent-scheduler/v1/queue/txt2img", payload)
    if queued.status == 404:
        pytest.skip("Agent Scheduler isn't installed")
    path, deadline = f"/agent-scheduler/v1/task/{queued.body['task_id']}", time.monotonic() + 120
    while webui.get(path)["data"]["status"] not in ("done", "failed") and time.monotonic() < deadline:
        time.sleep(0.5)
    answer = webui.get(f"{path}/results")
    assert answer["success"], answer
    assert_same(decode_image(answer["data"][0]["image"]), guided(steps=2))


def test_infinite_image_browsing(webui: WebUI) -> None:
    answer, path = guided(webui, small(steps=2)), webui.scratch / "guided.png"
    path.write_bytes(base64.b64decode(answer.body["images"][0]))
    try:
        text = webui.get(f"/infinite_image_browsing/image_geninfo?path={path}")
    except requests.HTTPError:
        pytest.skip("Infinite image browsing isn't installed")
    # It adds who made the picture.
    assert text.startswith(answer.infotexts[0].strip())
    assert "ASAG: scale" in text
