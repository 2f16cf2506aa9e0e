"""Hires fix: which pass is guided, with which scale and blocks; the window counts within each pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .payloads import asag, assert_differ, assert_same, request
from .server import WebUI

HIRES = {
    "enable_hr": True,
    "hr_scale": 1.5,
    "hr_upscaler": "Latent",
    "hr_second_pass_steps": 3,
    "denoising_strength": 0.7,
}


@pytest.fixture(scope="module")
def hires(webui: WebUI) -> Any:
    known: dict[str, np.ndarray] = {}

    def image(**settings: Any) -> np.ndarray:
        key = repr(sorted(settings.items()))
        if key not in known:
            # At 128 px the middle block has 4 tokens, too few for differences between passes to show.
            scripts = {"alwayson_scripts": asag(**{"blocks": "out.3-8", **settings})} if settings else {}
            known[key] = webui.txt2img(**request(**HIRES, **scripts)).image
        return known[key]

    return image


def test_each_pass_can_be_guided_alone(hires: Any) -> None:
    images = [hires(), hires(hires="first"), hires(hires="hires"), hires(hires="both")]
    for index, image in enumerate(images):
        assert image.shape == (192, 192, 3)
        for other in images[:index]:
            assert_differ(image, other)


def test_the_hires_pass_has_its_own_scale_and_blocks(hires: Any) -> None:
    both = hires(hires="both")
    assert_same(hires(hires="both", hires_scale=8.0), both)
    assert_differ(hires(hires="both", hires_scale=2.0), both)
    assert_differ(hires(hires="both", hires_blocks="out.3-5"), both)
    assert_same(hires(hires="first", hires_scale=2.0, hires_blocks="out.3-5"), hires(hires="first"))


def test_the_window_counts_within_each_pass(hires: Any) -> None:
    """The first third of each pass of 3 steps: one guided step in the first pass, one in the hires pass."""
    window = {"end": 0.3}
    images = [hires(), hires(hires="first", **window), hires(hires="hires", **window), hires(hires="both", **window)]
    for index, image in enumerate(images):
        for other in images[:index]:
            assert_differ(image, other)


def test_without_hires_fix_only_the_first_pass_counts(webui: WebUI) -> None:
    plain = webui.txt2img(**request()).image
    assert_same(webui.txt2img(**request(alwayson_scripts=asag(hires="hires"))).image, plain)
    assert_differ(webui.txt2img(**request(alwayson_scripts=asag(hires="first"))).image, plain)
