"""What a client of the API is told: of pictures that weren't guided as asked, and of requests that can't be."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from .payloads import ROUNDING, asag, assert_differ, largest_difference, request
from .server import Answer, WebUI
from .test_hires import HIRES

Image = Callable[..., np.ndarray]
LONG = "x" * 1_000_000


def note_of(answer: Answer) -> str:
    """The note in the first image's infotext, or nothing. Hosts quote values with colons, and escape inside."""
    return answer.infotexts[0].partition("ASAG note: ")[2].replace('\\"', '"')


def in_info(answer: Answer) -> str:
    return json.loads(answer.body["info"])["extra_generation_params"].get("ASAG note", "")


@pytest.mark.parametrize(
    ("settings", "changes", "told"),
    [
        ({"start": 0.95}, {}, "ASAG guided no step of this image: no step lies between start and end"),
        ({"start": 0.8, "end": 0.2}, {}, "ASAG guided no step of this image: start, 0.8, isn't before end, 0.2"),
        # A UNet of SD1.x has one token in its middle block.
        ({}, {"width": 64, "height": 64}, "ASAG changed nothing"),
        ({"reuse": False}, {"width": 64, "height": 64}, "ASAG changed nothing"),
    ],
    ids=["no step", "empty window", "one token", "one token, whole pass"],
)
def test_a_picture_that_guidance_left_alone_says_so(
    webui: WebUI, plain: Image, settings: dict, changes: dict, told: str
) -> None:
    answer = webui.txt2img(**request(alwayson_scripts=asag(**settings), **changes))
    # With one token the predictions differ by rounding, which the scale multiplies.
    assert largest_difference(answer.image, plain(**changes)) < ROUNDING
    assert told in note_of(answer)
    assert told in in_info(answer)
    after = webui.txt2img(**request())
    assert "ASAG" not in after.infotexts[0]
    assert in_info(after) == ""


def test_a_picture_that_was_guided_as_asked_has_no_note(webui: WebUI) -> None:
    answer = webui.txt2img(**request(alwayson_scripts=asag()))
    assert note_of(answer) == in_info(answer) == ""


def test_a_note_is_no_setting(webui: WebUI) -> None:
    answer = webui.txt2img(**request(alwayson_scripts=asag(start=0.95)))
    info = webui.post("/sdapi/v1/png-info", {"image": answer.body["images"][0]}).body
    assert "ASAG" not in info["parameters"]
    assert info["parameters"]["ASAG note"].startswith("ASAG guided no step")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("scale 999", "scale: '999'; allowed: a number from 0 to 100"),
        ("scale 4.0; sharpness 3", "sharpness: unknown; allowed: enabled, scale"),
        ('"scale 4,0"', "scale: '4,0'; allowed: a number from 0 to 100"),
    ],
)
def test_an_infotext_that_cant_be_read_ends_the_request(webui: WebUI, text: str, told: str) -> None:
    infotext = webui.txt2img(**request()).infotexts[0]
    if webui.txt2img(infotext=infotext, scheduler="Automatic").status != 200:
        pytest.skip("this host's API fails to read its own infotexts")
    answer = webui.txt2img(infotext=f"{infotext}, ASAG: {text}", scheduler="Automatic")
    assert answer.status == 422
    assert answer.body["detail"].startswith(f"ASAG: the infotext can't be read: {told}")


@pytest.mark.parametrize("settings", [{"scale": LONG}, {LONG: 1}, {"blocks": LONG}, {"method": [LONG]}])
def test_a_mistake_is_told_in_short_and_without_a_traceback(webui: WebUI, settings: dict) -> None:
    before = len(webui.log)
    answer = webui.txt2img(**request(alwayson_scripts=asag(**settings)))
    assert answer.status == 422
    assert "allowed: " in answer.body["detail"]
    assert len(json.dumps(answer.body)) < 2000
    said = webui.log[before:]
    assert "Traceback" not in said
    assert said.count("ASAG settings: ") == 1
    assert len(said) < 3000


@pytest.fixture
def first_checkpoint_again(webui: WebUI) -> Iterator[None]:
    """Afterwards the host has its own checkpoint again, not the hires pass's."""
    yield
    webui.txt2img(**request(steps=1))


@pytest.mark.usefixtures("first_checkpoint_again")
def test_blocks_that_the_hires_checkpoint_lacks_are_refused_before_the_first_pass(webui: WebUI) -> None:
    if not webui.sdxl:
        pytest.skip("no SDXL checkpoint")
    changes = {**HIRES, "hr_checkpoint_name": webui.sdxl}
    alone = webui.txt2img(**request(**changes, steps=2))
    if alone.status != 200:
        pytest.skip(f"the host by itself fails at this request: {alone.body}")
    # in.1 attends in SD1.x alone.
    answer = webui.txt2img(**request(alwayson_scripts=asag(blocks="mid", hires_blocks="in.1"), **changes))
    assert answer.status == 422
    assert "hires_blocks: the hires checkpoint lacks 'in.1'; this model has: " in answer.body["detail"]
    guided = webui.txt2img(**request(alwayson_scripts=asag(blocks="in.1", hires_blocks="in.4"), **changes, steps=2))
    assert_differ(guided.image, alone.image)
    assert note_of(guided) == ""
