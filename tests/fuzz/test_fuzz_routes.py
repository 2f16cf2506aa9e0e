"""The extension's routes against their OpenAPI description, by schemathesis, on an app of their own; on a WebUI:
tests/webui/test_routes.py.

`make fuzz` installs schemathesis; in `make test` this skips.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asag.hosts.refused import Refused
from asag.models.ldm_unet import LdmUnet
from tests.fuzz.routes import ask_all_routes

schemathesis = pytest.importorskip("schemathesis")
fastapi = pytest.importorskip("fastapi")

SDXL = [f"input_blocks.{block}.1" for block in (4, 5, 7, 8)] + ["middle_block.1"]
LAYERS = [f"{block}.transformer_blocks.{layer}" for block in SDXL for layer in (0, 1)]


def checkpoint(folder: Path) -> SimpleNamespace:
    """What a host knows of a file with SDXL's names."""
    header = {f"{layer}.attn1.to_q.weight": {"shape": [640, 640]} for layer in LAYERS}
    header |= {f"{layer}.attn2.to_k.weight": {"shape": [640, 2048]} for layer in LAYERS}
    written = json.dumps(header).encode()
    path = folder / "xl.safetensors"
    path.write_bytes(len(written).to_bytes(8, "little") + written)
    return SimpleNamespace(name=path.name, filename=str(path))


class Host:
    """The double of a host that has loaded nothing and has chosen a checkpoint, or none."""

    families = (LdmUnet(),)

    def __init__(self, chosen: SimpleNamespace | None) -> None:
        self.chosen = chosen

    def checkpoints(self, wanted: str | None = None) -> tuple[None, SimpleNamespace | None]:
        return None, self.chosen

    def model(self) -> Any:
        raise Refused("ASAG: no model is loaded yet", 422)


@pytest.fixture(params=["a model", "no model"])
def api(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    from asag.webui import routes

    app = fastapi.FastAPI()
    routes.add_routes(app, Host(checkpoint(tmp_path) if request.param == "a model" else None))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def test_the_routes_do_what_they_say(api: Any) -> None:
    assert ask_all_routes(api) == {"/asag/schema", "/asag/blocks"}
