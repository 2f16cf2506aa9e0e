"""Prompts: several parts, parts that change along the way, lengths that differ, and no CFG."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from .payloads import ROUNDING, asag, assert_differ, largest_difference, request
from .server import WebUI

Image = Callable[..., np.ndarray]
LONG = ", ".join(["a cat on a wooden chair by the window"] * 12)  # 2 chunks of 75 tokens


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat AND a dog",
        "a cat :1.2 AND a dog :0.4 AND a bird",
        "a cat AND a dog :-0.5",
        "a [cat:dog:0.5] on a chair",
        "a [cat|dog|bird] on a chair",
        "a [cat:dog:0.5] AND a [bird|fish] :0.7",
        "",
    ],
)
def test_prompt_syntax(guidance_works: Image, prompt: str) -> None:
    guidance_works(request(prompt=prompt, steps=4))


def test_parts_of_one_prompt_are_that_prompt(guided: Image) -> None:
    # uncond + Σ wᵢ s (c - uncond) with wᵢ that sum to 1; δ is the mean of equal differences.
    whole = guided(prompt="a cat")
    assert largest_difference(guided(prompt="a cat :0.25 AND a cat :0.75"), whole) <= ROUNDING
    assert_differ(guided(prompt="a cat :0.25 AND a dog :0.75"), whole)


@pytest.mark.parametrize("prompt", ["a [cat:cat:0.5]", "a [cat|cat]"])
def test_changes_to_the_same_change_nothing(guided: Image, prompt: str) -> None:
    assert largest_difference(guided(prompt=prompt), guided(prompt="a cat")) < ROUNDING


def test_prompts_of_a_batch_keep_apart(webui: WebUI, guided: Image) -> None:
    # A list of prompts isn't the API's to give; two seeds of an AND prompt are: rows of image 0, then of image 1.
    prompt = "a cat AND a dog :0.5"
    batch = webui.txt2img(**request(prompt=prompt, batch_size=2, alwayson_scripts=asag())).images
    for index, image in enumerate(batch):
        assert largest_difference(image, guided(prompt=prompt, seed=7 + index)) < ROUNDING


@pytest.mark.parametrize("options", [{}, {"pad_cond_uncond": True}, {"pad_cond_uncond_v0": True}], ids=str)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("prompt", "negative"),
    [(LONG, "blurry"), ("a cat", LONG), (LONG + " AND a cat", "blurry")],
    ids=["long prompt", "long negative", "long AND short"],
)
def test_token_lengths(guidance_works: Image, prompt: str, negative: str, batch: int, options: dict[str, bool]) -> None:
    guidance_works(
        request(prompt=prompt, negative_prompt=negative, batch_size=batch, override_settings=options, steps=2)
    )


def test_without_cfg_the_negative_prompt_is_nothing(guidance_works: Image, guided: Image) -> None:
    image = guidance_works(request(cfg_scale=1))
    assert largest_difference(guided(cfg_scale=1, negative_prompt="a dog, a bird, a fish"), image) < ROUNDING
