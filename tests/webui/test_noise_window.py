"""Start and end by noise, in a request: the host's own σ decides which steps are guided."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from .payloads import asag, assert_differ, assert_same, request
from .server import WebUI

Image = Callable[..., np.ndarray]
STEPS = {"steps": 4, "scheduler": "Normal"}


def test_a_window_of_all_noise_is_the_whole_and_one_of_none_is_nothing(plain: Image, guided: Image) -> None:
    whole = guided(**STEPS)
    for window in ({"start": "0%"}, {"start": "sigma 15", "end": "sigma 0"}, {"end": "100%"}):
        assert_same(guided(window, **STEPS), whole)
    assert_same(guided({"end": "sigma 100"}, **STEPS), plain(**STEPS))


@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
def test_the_first_step_alone_by_steps_and_by_noise(guided: Image, plain: Image, sampler: str) -> None:
    """Of four steps Euler's begin at 0, 33, 67 and 100% of the noise schedule, DDIM's at 25, 50 and 75%."""
    changes = {"steps": 4, "sampler_name": sampler}
    first = guided({"end": 0.25}, **changes)
    assert_differ(first, plain(**changes))
    assert_same(guided({"end": "30%"}, **changes), first)


def test_the_infotext_names_the_noise(webui: WebUI) -> None:
    answer = webui.txt2img(**request(alwayson_scripts=asag(start="σ 14.9", end="60%")))
    assert "start sigma 14.9; end 60%" in answer.infotexts[0]


def test_a_fraction_of_the_steps_beside_noise_is_refused(webui: WebUI) -> None:
    answer = webui.txt2img(**request(alwayson_scripts=asag(start=0.2, end="60%")))
    assert "start: 0.2 with end: 60%; allowed: two fractions of the steps" in str(answer.body)
