"""The transformers that Forge and Neo run: Flux, Chroma, SD3, Lumina, Z-Image, Qwen-Image, Wan and others.

Each is a small checkpoint with random weights, tiny-<kind>.safetensors among the host's (make_checkpoints_forge.py
writes them); those that aren't there skip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from .payloads import REUSE_ROUNDING, asag, assert_differ, assert_same, image_request, largest_difference, request
from .server import WebUI

Image = Callable[..., np.ndarray]

# kind: a block in its first half and one in its second. Wan and Qwen answer weakly, hence the scales.
KINDS = {
    "flux": ("double.0", "single.1"),
    "flux-schnell": ("double.0", "single.1"),
    "klein": ("double.0", "single.1"),
    "chroma": ("double.0", "single.1"),
    "sd3": ("joint.0", "joint.1"),
    "lumina": ("layer.0", "layer.1"),
    "zimage": ("layer.0", "layer.1"),
    "qwen": ("joint.0", "joint.1"),
    "krea": ("layer.0", "layer.1"),
    "ernie": ("layer.0", "layer.1"),
    "anima": ("layer.0", "layer.1"),
    "wan": ("layer.0", "layer.1"),
}
LONG = ", ".join(["a red cat on a wooden chair by the window"] * 8)


def small(**changes: Any) -> dict[str, Any]:
    # Forge's automatic scheduler gives Flux sigmas that end in NaN at so few steps.
    sampling = {"steps": 2, "scheduler": "Simple", "distilled_cfg_scale": 3.5}
    return request(**{"width": 256, "height": 256, **sampling, **changes})


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, webui: WebUI) -> Iterator[str]:
    """Switches the model, once for each kind."""
    name = f"tiny-{request.param}.safetensors"
    if not (webui.folder / "models" / "Stable-diffusion" / name).exists():
        pytest.skip(f"this host has no {name}")
    webui.set_options(sd_model_checkpoint=name)
    webui.txt2img(**small(steps=1))  # what the host sets once, before the guard looks
    yield request.param
    webui.set_options(sd_model_checkpoint=webui.sd15)
    webui.txt2img(**small(steps=1))  # Forge loads it only now


def test_guidance(webui: WebUI, guidance_works: Image, kind: str) -> None:
    plain = webui.txt2img(**small()).image
    assert_same(webui.txt2img(**small(alwayson_scripts=asag(scale=0))).image, plain)
    guidance_works(small(), scale=100, blocks="all")


def test_auto_and_single_blocks(webui: WebUI, guided: Image, kind: str) -> None:
    known = webui.get("/asag/blocks")
    assert known["auto_reason"]
    assert known["experimental"]
    blocks = [each["address"] for each in known["blocks"]]
    assert set(KINDS[kind]) <= set(blocks)
    images = [guided({"blocks": each, "scale": 100}, **small()) for each in (*KINDS[kind], "all", "auto")]
    assert_differ(images[0], images[1])
    assert_differ(images[1], images[2])
    assert_same(guided({"blocks": known["auto"], "scale": 100}, **small()), images[3])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cfg_scale": 1},
        {"prompt": LONG},
        {"negative_prompt": LONG},
        {"width": 208, "height": 144},
        {"batch_size": 2},
    ],
    ids=["plain", "CFG 1", "long prompt", "long negative", "odd size", "batch"],
)
def test_softmax_gives_no_delta(webui: WebUI, kind: str, changes: dict[str, Any]) -> None:
    # What differs although nothing is perturbed: text repeated to a common length, other rows, no rotary embedding.
    told = webui.softmax_delta(**small(**changes, alwayson_scripts=asag(scale=1, blocks="all")))
    assert told["calls"]
    assert len(told["delta"]) == 2
    assert max(told["delta"]) < 1e-5, told


def test_the_blocks_before_the_weakened_ones_run_once(webui: WebUI, guided: Image, kind: str) -> None:
    whole = guided({"reuse": False}, **small())
    assert largest_difference(guided({}, **small()), whole) <= REUSE_ROUNDING
    assert webui.last_reuse() == {"shared": 2, "whole": 0, "why": ""}


@pytest.mark.parametrize("method", ["pag", "seg", "uniform", "similarity"])
def test_methods(guidance_works: Image, kind: str, method: str) -> None:
    guidance_works(small(), scale=100, blocks="all", method=method)


def test_batch_equals_singles(webui: WebUI, guided: Image, kind: str) -> None:
    if kind == "wan":
        pytest.skip("a video model's batch is its frames")
    batch = webui.txt2img(**small(batch_size=2, alwayson_scripts=asag(blocks="all"))).images
    assert largest_difference(batch[1], guided({"blocks": "all"}, **small(seed=8))) <= 3


def test_image_to_image(webui: WebUI, guidance_works: Image, kind: str) -> None:
    payload = image_request(**small(steps=3), denoising_strength=0.9)
    # With Flux.2 the first of equal requests differs from those after it, without ASAG as well.
    webui.img2img(**payload)
    guidance_works(payload, scale=100, blocks="all")
