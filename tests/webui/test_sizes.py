"""How many and how large: batches, the hires pass, sizes off the grid, and requests one after another."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from .payloads import ROUNDING, asag, assert_differ, assert_same, image_request, largest_difference, request
from .server import WebUI

Image = Callable[..., np.ndarray]
HIRES = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.7}


@pytest.mark.parametrize(("batches", "size"), [(2, 1), (1, 2), (2, 2)])
def test_batches(webui: WebUI, guided: Image, batches: int, size: int) -> None:
    answer = webui.txt2img(**request(n_iter=batches, batch_size=size, alwayson_scripts=asag()))
    assert len(answer.images) == batches * size
    for index, image in enumerate(answer.images):
        assert largest_difference(image, guided(seed=7 + index)) < ROUNDING
    assert all("ASAG: scale" in text for text in answer.infotexts)


@pytest.mark.parametrize("method", ["asag", "seg"])
@pytest.mark.parametrize("size", [(264, 328), (136, 72), (328, 200)], ids=str)
def test_sizes_off_the_grid(guidance_works: Image, size: tuple[int, int], method: str) -> None:
    guidance_works(request(width=size[0], height=size[1], steps=2), method=method, blocks="in.1, mid, out.11")


@pytest.mark.parametrize("method", ["asag", "seg"])
@pytest.mark.parametrize("upscaler", ["Latent", "Latent (nearest-exact)", "Lanczos"])
def test_hires(guidance_works: Image, upscaler: str, method: str) -> None:
    image = guidance_works(request(**HIRES | {"hr_upscaler": upscaler}), method=method)
    assert image.shape == (192, 192, 3)


def test_hires_with_its_own_prompt_sampler_and_steps(guidance_works: Image) -> None:
    own = {"hr_prompt": "a dog AND a bird", "hr_sampler_name": "DDIM", "hr_second_pass_steps": 2, "hr_cfg": 3}
    guidance_works(request(**HIRES, **own, batch_size=2))


def test_hires_window_holds_in_each_pass(guided: Image, plain: Image) -> None:
    # The last quarter of each pass, not of both together: without a hires pass the image differs from the plain one.
    window = {"start": 0.5, "blocks": "all", "scale": 30}
    assert_differ(guided(window, steps=4), plain(steps=4))
    assert_differ(guided(window, **HIRES, steps=4), plain(**HIRES, steps=4))


def test_mixed_requests_one_after_another(webui: WebUI) -> None:
    requests = mixed_requests()
    first = [ask(webui, *each) for each in requests]
    again = [ask(webui, *each) for each in reversed(requests)]
    for one, other in zip(first, reversed(again), strict=True):
        assert_same(one, other)


def test_mixed_requests_at_once(webui: WebUI) -> None:
    # After a batch of two A1111 by itself makes another img2img image, and here the order is open.
    requests = [each for each in mixed_requests() if "batch_size" not in each[1]]
    alone = [ask(webui, *each) for each in requests]
    with ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(lambda each: ask(webui, *each), requests))
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)


def mixed_requests() -> list[tuple[str, dict[str, Any]]]:
    return [
        ("txt2img", request(alwayson_scripts=asag())),
        ("txt2img", request()),
        ("txt2img", request(alwayson_scripts=asag(blocks="all", method="pag"))),
        ("img2img", image_request()),
        ("img2img", image_request(alwayson_scripts=asag(iterations=1))),
        ("txt2img", request(**HIRES, alwayson_scripts=asag(end=0.5))),
        ("txt2img", request(batch_size=2)),
        ("txt2img", request(alwayson_scripts=asag(scale=0))),
    ]


def ask(webui: WebUI, kind: str, payload: dict[str, Any]) -> np.ndarray:
    return (webui.img2img if kind == "img2img" else webui.txt2img)(**payload).image
