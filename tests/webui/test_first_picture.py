"""The first guided picture: off is off, on changes it, every setting does what it says, nothing stays."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from .payloads import ROUNDING, STRONG, asag, assert_differ, assert_same, largest_difference, request
from .server import WebUI

Image = Callable[..., np.ndarray]
SIZE = {"width": 256, "height": 256}


@pytest.mark.parametrize(
    "settings",
    [{"enabled": False}, {"scale": 0}, {"start": 0.5, "end": 0.5}, {"start": 1.0}],
    ids=["disabled", "scale 0", "empty window", "window after the last step"],
)
def test_switched_off_is_the_plain_image(webui: WebUI, plain: Image, settings: dict[str, Any]) -> None:
    answer = webui.txt2img(**request(**SIZE, alwayson_scripts=asag(**settings)))
    assert_same(answer.image, plain(**SIZE))
    assert "ASAG: " not in answer.infotexts[0]


def test_guided_differs_and_is_deterministic(guided: Image, plain: Image) -> None:
    first = guided(**SIZE)
    assert_differ(first, plain(**SIZE))
    assert_same(guided(**SIZE), first)


def test_infotext_tells_what_was_guided(webui: WebUI) -> None:
    answer = webui.txt2img(**request(alwayson_scripts=asag(scale=2.5, blocks="mid", iterations=3)))
    assert "ASAG: scale 2.5; blocks mid; iterations 3" in answer.infotexts[0]


def test_infotext_of_the_next_plain_request_is_clean(webui: WebUI) -> None:
    assert "ASAG" in webui.txt2img(**request(alwayson_scripts=asag())).infotexts[0]
    assert "ASAG" not in webui.txt2img(**request()).infotexts[0]


def test_batch_equals_singles(webui: WebUI, guided: Image) -> None:
    batch = webui.txt2img(**request(**SIZE, batch_size=3, alwayson_scripts=asag())).images
    assert len(batch) == 3
    for index, image in enumerate(batch):
        # Another batch size takes other kernels: the host's own images, unguided, are a grey level apart as well.
        assert largest_difference(image, guided(**SIZE, seed=7 + index)) < ROUNDING
    assert_differ(batch[0], batch[1])


def test_settings_matter(guided: Image) -> None:
    variants = [
        {},
        {"scale": 100},
        {"iterations": 1},
        {"strength": 3},
        {"blocks": "out.3"},
        {"blocks": "all"},
        {"method": "pag"},
        {"method": "seg"},
        {"method": "uniform"},
        {"method": "similarity"},
        {"rescale": 1.0},
        {"contrast": 0.0},
    ]
    # The hosts' random checkpoints answer differently strongly: so that a second iteration shows in each.
    images = [guided({"scale": 40, "blocks": "in.4, mid, out.5", **variant}, **SIZE) for variant in variants]
    same = [
        (variants[one], variants[other])
        for one, other in itertools.combinations(range(len(variants)), 2)
        if largest_difference(images[one], images[other]) < ROUNDING
    ]
    assert not same


def test_window_and_schedule_matter(guided: Image, plain: Image) -> None:
    # Random weights make the late steps weigh little in the image: every layer, no CFG, and sigmas that fall slowly.
    steps = {"steps": 4, "cfg_scale": 1, "scheduler": "SGM Uniform"}
    windows = [{}, {"end": 0.5}, {"start": 0.5}, {"schedule": "linear"}]
    images = [plain(**steps), *(guided({"blocks": "all", **window}, **steps) for window in windows)]
    for one, other in itertools.combinations(images, 2):
        assert_differ(one, other)


def test_auto_is_the_middle_block(guided: Image) -> None:
    assert_same(guided({"blocks": "auto"}), guided({"blocks": "mid"}))
    assert_same(guided({"blocks": "m0"}), guided({"blocks": "mid"}))


def test_positional_values(webui: WebUI, guided: Image) -> None:
    # In the user interface's order: enabled, scale, blocks, iterations.
    answer = webui.txt2img(**request(alwayson_scripts={"ASAG": {"args": [True, STRONG, "out.3", 1]}}))
    assert_same(answer.image, guided({"blocks": "out.3", "iterations": 1}))


def test_numbers_as_text(guided: Image) -> None:
    assert_same(guided({"scale": "4", "iterations": "1"}), guided({"scale": 4, "iterations": 1}))


@pytest.mark.logs_errors
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"scale": -1, "iterations": 2.5, "method": "sag"}, ["scale: -1", "iterations: 2.5", "method: 'sag'"]),
        ({"sclae": 1.5, "start": "early"}, ["sclae: unknown", "start: 'early'"]),
        ({"enabled": False, "scale": 101}, ["scale: 101"]),
        ({"blocks": "middle"}, ["blocks: 'middle'"]),
        ({"blocks": "out.99"}, ["blocks: 'out.99'", "this model has: in.1"]),
        ({"blocks": "joint.3"}, ["blocks: 'joint.3'"]),
    ],
)
def test_bad_values_are_refused(webui: WebUI, plain: Image, settings: dict[str, Any], named: list[str]) -> None:
    answer = webui.txt2img(**request(alwayson_scripts=asag(**settings)))
    assert answer.status == 422, answer.body
    assert all(text in str(answer.body["detail"]) for text in named), answer.body
    assert "images" not in answer.body
    assert_same(webui.txt2img(**request()).image, plain())


def test_unguided_image_is_as_before_everything(webui: WebUI, plain: Image, guided: Image) -> None:
    before = plain(**SIZE)
    guided({"blocks": "all", "method": "seg"}, **SIZE)
    assert_same(webui.txt2img(**request(**SIZE)).image, before)
