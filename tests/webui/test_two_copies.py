"""Two copies of the extension in one WebUI, under --api-auth: the first works, and the second says what it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from .payloads import asag, assert_differ, request
from .server import REPOSITORY, WebUI, linked


@pytest.fixture(scope="module")
def double(webui: WebUI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """A second server, with one more copy among the host's extensions, whose API asks for a password."""
    second = webui.folder / "extensions" / f"zz-second-asag-{os.getpid()}"
    with linked(REPOSITORY, second):
        server = WebUI(webui.folder, tmp_path_factory.mktemp("double"), flags=["--api-auth", "user:right"], auth=AUTH)
        with server.running():
            yield server


AUTH = ("user", "right")
SECOND = "ASAG (second copy)"


def test_the_first_copy_works(double: WebUI) -> None:
    plain = double.txt2img(**request()).image
    answer = double.txt2img(**request(alwayson_scripts=asag()))
    assert "ASAG: scale 8" in answer.infotexts[0]
    assert_differ(answer.image, plain)


@pytest.mark.parametrize("args", [[True], [{"enabled": True, "scale": 8}]])
def test_a_request_to_the_second_copy_is_an_error(double: WebUI, args: list) -> None:
    answer = double.txt2img(**request(alwayson_scripts={SECOND: {"args": args}}))
    assert answer.status == 422
    assert answer.body["detail"].startswith("ASAG is installed twice. The copy in ")
    assert Path(answer.body["detail"].split("the copy in ")[1].split(" does nothing")[0]).name.startswith("zz-second")
    assert double.txt2img(**request(alwayson_scripts={SECOND: {"args": [False]}})).status == 200


def test_the_log_and_the_page_say_so(double: WebUI) -> None:
    assert "ASAG is installed twice. The copy in " in double.log
    assert "Error loading script: asag.py" not in double.log
    page = requests.get(f"{double.url}/config", timeout=60).text
    assert "ASAG: a second copy of the extension, which does nothing" in page
    assert "ASAG is installed twice. The copy in " in page


def test_the_routes_ask_for_the_password_and_the_pages_map_does_not(double: WebUI) -> None:
    for path in ("/asag/schema", "/asag/blocks", "/sdapi/v1/options"):
        assert requests.get(double.url + path, timeout=60).status_code == 401
        assert double.get(path)
    page = requests.get(f"{double.url}/config", timeout=60).text
    route = page.split("data-route=")[1].split("asag/")[1].split("\\")[0]
    assert requests.get(f"{double.url}/asag/{route}", timeout=60).json()["auto"] == "mid"
