"""The extension's own routes: what may be asked for, and what the loaded model is made of."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from asag.hosts.generation import Host, Refused
from asag.webui import api, block_map


def add_routes(app: FastAPI, host: Host) -> None:
    """GET /asag/schema and GET /asag/blocks, the latter with `blocks` and `toggle` as block_map.inventory has them.

    Where there is no model to tell of, /asag/blocks says why, with the status of an error.
    """

    def blocks(blocks: str = "auto", toggle: str = "") -> Any:
        try:
            return block_map.inventory(*host.model(), blocks, toggle)
        except Refused as error:
            return JSONResponse({"detail": error.detail}, status_code=error.status_code)

    app.add_api_route("/asag/schema", api.schema, methods=["GET"])
    app.add_api_route("/asag/blocks", blocks, methods=["GET"])
