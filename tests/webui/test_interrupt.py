"""Interrupting and skipping in the middle of a guided run."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from .payloads import asag, assert_differ, assert_same, request
from .server import Answer, WebUI

Image = Callable[..., np.ndarray]
# So long that the command comes in time on any machine; what is left of the steps isn't waited for.
STEPS = 20
AFTER_STEP = 3


def ask_and(webui: WebUI, command: str, **changes: Any) -> Answer:
    """The answer to a guided request that is sent `command` once it has got to its AFTER_STEP-th step."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(webui.txt2img, **request(steps=STEPS, alwayson_scripts=asag(), **changes))
        while webui.get("/sdapi/v1/progress?skip_current_image=true")["state"]["sampling_step"] < AFTER_STEP:
            assert not answer.done(), answer.result().body
            time.sleep(0.05)
        assert webui.post(f"/sdapi/v1/{command}").status == 200
        return answer.result()


def unquoted(answer: Answer) -> str:
    """The first image's infotext; hosts quote values with colons."""
    return answer.infotexts[0].replace('"', "")


@pytest.mark.parametrize("command", ["interrupt", "skip"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"batch_size": 2}, {"sampler_name": "DDIM"}, {"sampler_name": "Heun"}],
    ids=["plain", "batch", "DDIM", "Heun"],
)
def test_ends_and_leaves_nothing(
    webui: WebUI, plain: Image, guided: Image, command: str, changes: dict[str, Any]
) -> None:
    unguided, before, clean = plain(**changes), guided(**changes), webui.fingerprint()
    answer = ask_and(webui, command, **changes)
    assert len(answer.images) >= 1
    stopped = {"interrupt": "interrupted", "skip": "skipped"}[command]
    told = re.search(rf"ASAG note: ASAG guided (\d+) of (\d+) steps: the image was {stopped}", unquoted(answer))
    assert told, answer.infotexts
    assert 0 < int(told[1]) < int(told[2])
    assert "ASAG: scale 8" in answer.infotexts[0]
    assert webui.fingerprint() == clean
    assert_same(webui.txt2img(**request(**changes)).image, unguided)
    assert_same(guided(**changes), before)


def test_the_image_after_a_skipped_one_is_guided(webui: WebUI, plain: Image, guided: Image) -> None:
    skipped, whole = ask_and(webui, "skip", n_iter=2).images
    assert_same(whole, guided(seed=8, steps=STEPS))
    assert_differ(whole, plain(seed=8, steps=STEPS))
    assert_differ(skipped, guided(steps=STEPS))
