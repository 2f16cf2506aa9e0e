"""The host's options around a denoiser step: uncond skipped, halves run one by one, rescaling beside AND."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from .payloads import ROUNDING, asag, assert_differ, largest_difference
from .payloads import request as small
from .server import WebUI

Image = Callable[..., np.ndarray]


@pytest.mark.parametrize(
    "options",
    [
        {"s_min_uncond": 100, "s_min_uncond_all": True},
        {"skip_early_cond": 1.0},
    ],
    ids=["NGMS", "Skip Early CFG"],
)
@pytest.mark.parametrize("prompt", ["a cat", "a cat AND a dog :0.5"])
@pytest.mark.parametrize("batch", [1, 2])
def test_uncond_skipped_at_every_step(
    webui: WebUI, guidance_works: Image, guided: Image, options: dict[str, Any], prompt: str, batch: int
) -> None:
    payload = small(prompt=prompt, batch_size=batch, override_settings=options)
    image = guidance_works(payload)
    # The host copies cond to uncond's place and combines with a scale of 1, which for one part is no CFG at all.
    # Neo skips it from the second step on.
    if "AND" not in prompt and not (webui.kind == "neo" and "skip_early_cond" in options):
        assert largest_difference(image, guided(prompt=prompt, cfg_scale=1)) < ROUNDING


@pytest.mark.parametrize("options", [{"s_min_uncond": 100}, {"skip_early_cond": 0.4}], ids=["NGMS", "Skip Early CFG"])
def test_uncond_skipped_at_some_steps(guidance_works: Image, options: dict[str, Any]) -> None:
    guidance_works(small(steps=4, override_settings=options))


@pytest.mark.parametrize("prompt", ["a cat", "a cat AND a dog :0.5"])
@pytest.mark.parametrize("batch", [1, 2])
def test_halves_one_by_one(guidance_works: Image, guided: Image, prompt: str, batch: int) -> None:
    payload = small(prompt=prompt, batch_size=batch, override_settings={"batch_cond_uncond": False})
    assert largest_difference(guidance_works(payload), guided(prompt=prompt)) < ROUNDING


@pytest.mark.parametrize("sampler", ["Euler a", "DDIM"])
@pytest.mark.parametrize(
    "changed",
    [{"rescale": 1.0}, {"contrast": 0.0}, {"unit": "push", "scale": 0.3}, {"unit": "cfg", "scale": 4.0}],
    ids=["rescale", "contrast", "push", "cfg"],
)
def test_several_parts_and_images(
    webui: WebUI, guided: Image, plain: Image, changed: dict[str, Any], sampler: str
) -> None:
    # Rescaling alone changes the image, as it takes CFG's contrast too: guidance_works has nothing to say about it.
    pushed = {"scale": 40, "blocks": "in.4, mid, out.5"}
    settings = {**pushed, **changed}
    payload = {"prompt": "a cat AND a dog :0.5", "sampler_name": sampler}
    answer = webui.txt2img(**small(**payload, batch_size=2, alwayson_scripts=asag(**settings)))
    for index, image in enumerate(answer.images):
        assert largest_difference(image, guided(settings, **payload, seed=7 + index)) < ROUNDING
        assert_differ(image, guided(pushed, **payload, seed=7 + index))
        assert_differ(image, plain(**payload, seed=7 + index))


NO_CFG = "ASAG used unit push at 0.1 times the scale in {} guided steps"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, ""),
        ({"sampler_name": "Heun"}, ""),
        ({"cfg_scale": 1}, "3 of 3"),
        ({"override_settings": {"s_min_uncond": 100, "s_min_uncond_all": True}}, "3 of 3"),
        ({"override_settings": {"skip_early_cond": 0.4}, "steps": 4}, "of 4"),
    ],
    ids=["CFG", "Heun", "CFG 1", "NGMS", "Skip Early CFG"],
)
def test_unit_cfg_says_where_there_is_no_cfg(webui: WebUI, plain: Image, changes: dict[str, Any], told: str) -> None:
    settings = {"unit": "cfg", "scale": 4.0, "blocks": "in.4, mid, out.5"}
    answer = webui.txt2img(**small(**changes, alwayson_scripts=asag(**settings)))
    assert_differ(answer.image, plain(**changes))
    note = answer.infotexts[0].partition("ASAG note: ")[2].replace('\\"', '"')
    # Neo never leaves CFG out of the first step, and the others go by that one.
    goes_by_the_first = webui.kind == "neo" and "steps" in changes
    if not told or goes_by_the_first:
        assert note == ""
    elif told.startswith("of"):
        assert "ASAG used unit push at 0.1 times the scale in " in note
    else:
        assert NO_CFG.format(told) in note


@pytest.mark.parametrize("sampler", ["Euler a", "DDIM"])
def test_steps_between_use_the_last_push(webui: WebUI, guided: Image, plain: Image, sampler: str) -> None:
    """With shared work or without, alone or in a batch; and a single guided step has nothing to use again."""
    settings = {"scale": 40, "blocks": "in.4, mid, out.5", "every": 2}
    payload = {"prompt": "a cat AND a dog :0.5", "sampler_name": sampler, "steps": 4}
    answer = webui.txt2img(**small(**payload, batch_size=2, alwayson_scripts=asag(**settings)))
    assert "every 2" in answer.infotexts[0]
    for index, image in enumerate(answer.images):
        again = {**payload, "seed": 7 + index}
        assert largest_difference(image, guided({**settings, "reuse": False}, **again)) < ROUNDING
        assert_differ(image, guided({**settings, "every": 1}, **again))
        assert_differ(image, plain(**again))
    single = {**settings, "start": 0.75}
    assert largest_difference(guided(single, **payload), guided({**single, "every": 1}, **payload)) < ROUNDING
