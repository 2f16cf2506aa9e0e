"""Forge and Forge Neo with room for none or half of a model's weights: the rest is moved for each call.

A probe makes them do so on a CPU (probe/scripts/asag_low_vram.py). The checkpoints are make_checkpoints_forge.py's;
those that aren't there skip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from .payloads import REUSE_ROUNDING, ROUNDING, asag, assert_differ, largest_difference, request
from .server import WebUI

Image = Callable[..., np.ndarray]
# Requests, and the plain and the guided image of each.
Made = list[tuple[dict[str, Any], list[np.ndarray]]]

KINDS = ["sd15.safetensors", "sdxl.safetensors", "sd3.safetensors", "flux.safetensors", "chroma.safetensors"]
KINDS += ["zimage.safetensors", "krea.safetensors", "flux-fp8.safetensors", "flux-q8.gguf", "flux-q4.gguf"]
KINDS += ["flux-nf4.safetensors"]
LORA, LORAS_FOR = "asag-tiny-lora", "sd15.safetensors"
LORA_KEY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_{}"
SIZES = {"down": (4, 64), "up": (64, 4)}  # tiny-sd15 has 64 channels
STRONG = {"scale": 100, "blocks": "all"}
ROUNDING_OF_DELTA = 1e-5


def small(**changes: Any) -> dict[str, Any]:
    return request(**{"steps": 2, "scheduler": "Simple", "distilled_cfg_scale": 3.5, **changes})


@pytest.fixture(scope="module")
def lora(webui: WebUI) -> Iterator[str]:
    """The word for a LoRA of the middle block's self-attention."""
    random, file = np.random.default_rng(1), webui.folder / "models" / "Lora" / f"{LORA}.safetensors"
    tensors = {}
    for layer in (LORA_KEY.format(name) for name in "qkv"):
        tensors |= {f"{layer}.lora_{way}.weight": random.normal(size=size) for way, size in SIZES.items()}
        tensors[f"{layer}.alpha"] = np.array(4.0)
    save_file({key: value.astype(np.float32) for key, value in tensors.items()}, file)
    try:
        webui.post("/sdapi/v1/refresh-loras")
        yield f"a cat on a chair, <lora:{LORA}:1>"
    finally:
        file.unlink()
        webui.post("/sdapi/v1/refresh-loras")


@pytest.fixture(scope="module", params=KINDS)
def usual(request: pytest.FixtureRequest, webui: WebUI, lora: str) -> Iterator[Made]:
    """What is asked, and the images with everything loaded."""
    name = f"tiny-{request.param}"
    if webui.kind not in ("forge", "neo"):
        pytest.skip("this host has no such loading")
    if not (webui.folder / "models" / "Stable-diffusion" / name).exists():
        pytest.skip(f"this host has no {name}")
    webui.set_options(sd_model_checkpoint=name)
    try:
        alone = webui.txt2img(**small())  # the host loads it now, and makes what it makes once
        if alone.status != 200:
            pytest.skip(f"the host by itself fails at this request: {alone.body}")
        payloads = [small(), *([small(prompt=lora)] if request.param == LORAS_FOR else [])]
        yield [(payload, images(webui, payload)) for payload in payloads]
    finally:
        webui.set_options(sd_model_checkpoint=webui.sd15)
        webui.txt2img(**small(steps=1))


@pytest.fixture(scope="module", params=[0.0, 0.5], ids=["none", "half"])
def share(request: pytest.FixtureRequest, webui: WebUI, usual: Made) -> Iterator[float]:
    """The share of the weights that has room, and the model loaded so."""
    webui.post("/asag-probe/room", share=request.param)
    webui.txt2img(**small(steps=1))
    yield request.param
    webui.post("/asag-probe/room", share=1)
    webui.txt2img(**small(steps=1))


def images(webui: WebUI, payload: dict[str, Any]) -> list[np.ndarray]:
    answers = [webui.txt2img(**payload), webui.txt2img(**payload, alwayson_scripts=asag(**STRONG))]
    assert [answer.status for answer in answers] == [200, 200], [answer.body for answer in answers]
    return [answer.image for answer in answers]


def test_the_images_are_those_with_everything_loaded(webui: WebUI, usual: Made, share: float) -> None:
    before = webui.get("/asag-probe/room")
    assert 0 < before["moved"] <= before["all"]
    assert (before["moved"] == before["all"]) == (share == 0), before
    for payload, wanted in usual:
        for image, with_all, rounding in zip(images(webui, payload), wanted, (ROUNDING, REUSE_ROUNDING), strict=True):
            assert largest_difference(image, with_all) < rounding
    if len(usual) > 1:
        assert_differ(usual[1][1][0], usual[0][1][0])
    assert webui.get("/asag-probe/room")["calls"] > before["calls"]


def test_guidance(webui: WebUI, guidance_works: Image, usual: Made, share: float) -> None:
    for payload, _ in usual:
        guidance_works(payload, **STRONG)
        told = webui.softmax_delta(**payload, alwayson_scripts=asag(scale=1, blocks="all"))
        assert told["calls"]
        assert max(told["delta"]) < ROUNDING_OF_DELTA, told
        reuse = webui.last_reuse()
        assert reuse["shared"], reuse
        assert not reuse["whole"], reuse
