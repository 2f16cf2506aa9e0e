"""The extension's own routes."""

from __future__ import annotations

import pytest

from tests.fuzz.routes import ask_all_routes

from .payloads import asag, request
from .server import WebUI


def test_schema_is_what_requests_may_send(webui: WebUI) -> None:
    schema = webui.get("/asag/schema")
    # Earlier names have none.
    defaults = {name: each["default"] for name, each in schema["properties"].items() if "default" in each}
    assert webui.txt2img(**request(alwayson_scripts=asag(**{**defaults, "enabled": True}))).status == 200


def test_blocks_are_the_loaded_models(webui: WebUI) -> None:
    inventory = webui.get("/asag/blocks")
    addresses = [block["address"] for block in inventory["blocks"]]
    assert addresses[:2] == ["in.1", "in.2"]
    assert "mid" in addresses
    assert inventory["auto"] == "mid"
    answer = webui.txt2img(**request(alwayson_scripts=asag(blocks=", ".join(addresses))))
    assert answer.status == 200


def test_the_routes_do_what_their_description_says(webui: WebUI) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    api = schemathesis.openapi.from_url(f"{webui.url}/openapi.json").include(path_regex="^/asag/")
    assert ask_all_routes(api) == {"/asag/schema", "/asag/blocks"}
