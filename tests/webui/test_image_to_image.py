"""img2img and inpainting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from .payloads import asag, assert_differ, assert_same, image_request
from .server import WebUI, encode_image

Image = Callable[..., np.ndarray]


def mask(rows: slice, columns: slice) -> str:
    """White where the image is to be painted anew."""
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[rows, columns] = 255
    return encode_image(pixels)


def inpainting(area: str, **changes: Any) -> dict[str, Any]:
    details = {"mask": area, "mask_blur": 0, "inpainting_fill": 1, "inpaint_full_res": False}
    return image_request(**{**details, **changes})


@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
def test_image_to_image(guidance_works: Image, strength: float) -> None:
    guidance_works(image_request(denoising_strength=strength))


@pytest.mark.parametrize("fill", [0, 1, 2, 3], ids=["fill", "original", "latent noise", "latent nothing"])
def test_inpainting(webui: WebUI, guidance_works: Image, fill: int) -> None:
    payload = inpainting(mask(slice(32, 96), slice(32, 96)), inpainting_fill=fill)
    image, unguided = guidance_works(payload), webui.img2img(**payload).image
    protected = np.ones((128, 128), bool)
    protected[32:96, 32:96] = False
    assert_same(image[protected], unguided[protected])
    assert_differ(image[~protected], unguided[~protected])


@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M", "DDIM", "UniPC"])
def test_protected_latents_stay(webui: WebUI, sampler: str) -> None:
    # A mask smaller than half a latent pixel protects every latent, though the host pastes the four pixels: they show
    # whether the latents around were moved.
    payload = inpainting(mask(slice(62, 64), slice(62, 64)), sampler_name=sampler)
    webui.img2img(**payload)  # the first of equal requests may differ from those after it
    answer = webui.img2img(**payload, alwayson_scripts=asag(blocks="all"))
    assert_same(answer.image, webui.img2img(**payload).image)


def test_only_the_masked_area_at_full_resolution(guidance_works: Image) -> None:
    guidance_works(inpainting(mask(slice(32, 96), slice(32, 96)), inpaint_full_res=True, inpaint_full_res_padding=8))


def test_soft_mask(guidance_works: Image) -> None:
    guidance_works(inpainting(mask(slice(32, 96), slice(32, 96)), mask_blur=8))


def test_soft_inpainting(webui: WebUI, guidance_works: Image) -> None:
    if "soft inpainting" not in webui.get("/sdapi/v1/scripts")["img2img"]:
        pytest.skip("Soft Inpainting isn't built in")
    payload = inpainting(mask(slice(32, 96), slice(32, 96)), mask_blur=8)
    soft = {"Soft Inpainting": {"args": [True, 1, 0.5, 4, 0, 0.5, 2]}}
    alone = webui.img2img(**payload, alwayson_scripts=soft).image
    if np.array_equal(alone, webui.img2img(**{**payload, "seed": 99}, alwayson_scripts=soft).image):
        pytest.skip("with random weights this host's Soft Inpainting gives back the first image, whatever was drawn")
    assert_differ(alone, webui.img2img(**payload).image)
    guidance_works({**payload, "alwayson_scripts": soft})
    assert_same(webui.img2img(**payload, alwayson_scripts={**soft, **asag(scale=0)}).image, alone)


def test_loopback(webui: WebUI) -> None:
    # One `p` goes through the host's process_images again and again: two loops, each must be guided, once.
    loops = {"script_name": "loopback", "script_args": [2, 0.5, "Linear", "None"]}
    if "loopback" not in webui.get("/sdapi/v1/scripts")["img2img"]:
        pytest.skip("this host lacks the script")
    unguided = webui.img2img(**image_request(**loops))
    guided = webui.img2img(**image_request(**loops, alwayson_scripts=asag()))
    alone = webui.img2img(**image_request(alwayson_scripts=asag()))
    assert_same(guided.images[-2], alone.image)
    assert_differ(guided.images[-1], unguided.images[-1])
    assert_differ(guided.images[-1], guided.images[-2])
    assert all(text.count("ASAG: scale") == 1 for text in guided.infotexts)
