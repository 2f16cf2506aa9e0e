"""The infotext: there when guidance ran, compact, and read back to the same image."""

from __future__ import annotations

from typing import Any

import pytest

from .payloads import asag, assert_differ, assert_same, request
from .server import WebUI

CASES: list[dict[str, Any]] = [
    {"scale": 3.5},
    {"blocks": "mid, out.3-5", "iterations": 3, "strength": 0.5},
    {"method": "pag", "start": 0.1, "end": 0.9, "schedule": "cosine", "rescale": 0.3},
    {"scale": 0.1, "unit": "push"},
    {"scale": 5.0, "unit": "cfg"},
]


@pytest.fixture(scope="module")
def reads_back(webui: WebUI) -> None:
    """Skips where the host's API can't read any infotext (Forge and Neo compare a value with list[str])."""
    text = webui.txt2img(**request()).infotexts[0]
    if webui.txt2img(infotext=text, scheduler="Automatic").status != 200:
        pytest.skip("this host's API fails to read its own infotexts")


@pytest.mark.usefixtures("reads_back")
@pytest.mark.parametrize("settings", CASES)
def test_the_api_reads_back_what_it_wrote(webui: WebUI, settings: dict[str, Any]) -> None:
    first = webui.txt2img(**request(alwayson_scripts=asag(**settings)))
    text = first.infotexts[0]
    assert text.count("ASAG") == 1
    again = webui.txt2img(infotext=text, scheduler="Automatic")
    assert again.infotexts[0] == text
    assert_same(again.image, first.image)


@pytest.mark.usefixtures("reads_back")
def test_a_text_without_asag_is_an_unguided_image(webui: WebUI) -> None:
    first = webui.txt2img(**request())
    again = webui.txt2img(infotext=first.infotexts[0], scheduler="Automatic")
    assert_same(again.image, first.image)


@pytest.mark.usefixtures("reads_back")
def test_the_requests_own_script_arguments_win(webui: WebUI) -> None:
    text = webui.txt2img(**request(alwayson_scripts=asag(scale=2))).infotexts[0]
    other = webui.txt2img(infotext=text, scheduler="Automatic", alwayson_scripts=asag(scale=5))
    expected = webui.txt2img(**request(alwayson_scripts=asag(scale=5)))
    assert_same(other.image, expected.image)
    assert "ASAG: scale 5" in other.infotexts[0]


def test_png_info_knows_the_key(webui: WebUI) -> None:
    answer = webui.txt2img(**request(alwayson_scripts=asag(scale=2, blocks="mid, out.3")))
    info = webui.post("/sdapi/v1/png-info", {"image": answer.body["images"][0]}).body
    assert info["parameters"]["ASAG"] == "scale 2.0; blocks mid, out.3"


def test_unit_push_guides_otherwise_than_the_plain_scale_and_its_earlier_spelling_alike(webui: WebUI) -> None:
    push = webui.txt2img(**request(alwayson_scripts=asag(scale=0.1, unit="push")))
    assert_differ(push.image, webui.txt2img(**request(alwayson_scripts=asag(scale=0.1))).image)
    earlier = webui.txt2img(**request(alwayson_scripts=asag(scale=0.1, adaptive=True)))
    assert_same(earlier.image, push.image)
    assert "ASAG: scale 0.1; unit push" in earlier.infotexts[0].replace('"', "")
