"""The extension's own routes: what may be asked for, and what the model that runs next is made of."""

from __future__ import annotations

import logging
import secrets
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from asag.hosts.host import Host
from asag.hosts.refused import Refused
from asag.hosts.shown import shown
from asag.webui import api, block_map

logger = logging.getLogger(__name__)

BLOCKS = "asag/blocks"
# What /asag/blocks answers where there is no model to tell of, for the app's OpenAPI description.
DETAIL = {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]}
REFUSED: dict[int | str, dict[str, Any]] = {
    422: {"description": "No model", "content": {"application/json": {"schema": DETAIL}}}
}
# Any route of the host's API.
OF_THE_HOST = "/sdapi/v1/txt2img"


def secret_route() -> str:
    """A route for the page's block map that nobody can guess: who sees the page may ask it, without the API's password.

    A browser would ask the user for that password if the page asked the other route.
    """
    return f"asag/{secrets.token_urlsafe(16)}/blocks"


def add_routes(app: FastAPI, host: Host, page_route: str = BLOCKS) -> None:
    """GET /asag/schema and GET /asag/blocks, the latter with `blocks` and `toggle` as block_map.inventory has them;
    protected as the host's API is. `page_route` gives the blocks to the page.

    Its answer also has `kind`, the kind of model, such as "SDXL"; `checkpoint`, whose blocks these are, and `loaded`,
    whether it is, or only chosen, and its file said this; `chosen_checkpoint`, another one that the next generation
    loads, and `chosen_problem`, why its file didn't say this of that one, or both null.

    Where there is no model to tell of, /asag/blocks says why, with the status of an error.
    """

    def blocks(blocks: str = "auto", toggle: str = "") -> Any:
        try:
            found = shown(host)
            return {
                **block_map.inventory(found.family, found.addresses, blocks, toggle, found.heads),
                "kind": found.kind,
                "checkpoint": found.checkpoint,
                "loaded": found.loaded,
                "chosen_checkpoint": found.chosen,
                "chosen_problem": found.problem,
            }
        except Refused as error:
            return JSONResponse({"detail": error.detail}, status_code=error.status_code)
        except Exception as error:
            detail = f"ASAG can't tell the blocks: {type(error).__name__}: {error}"
            logger.exception(detail)
            return JSONResponse({"detail": detail}, status_code=500)

    protection = api_protection(app)
    app.add_api_route("/asag/schema", api.schema, methods=["GET"], dependencies=protection)
    app.add_api_route(f"/{BLOCKS}", blocks, methods=["GET"], dependencies=protection, responses=REFUSED)
    if page_route != BLOCKS:
        app.add_api_route(f"/{page_route}", blocks, methods=["GET"], include_in_schema=False)


def api_protection(app: FastAPI) -> list[Any]:
    """The dependencies of the host's own API, which asks for a name and a password under --api-auth
    (modules/api/api.py: Api.add_api_route); none where it is open or switched off."""
    for route in app.routes:
        if getattr(route, "path", None) == OF_THE_HOST:
            return list(route.dependencies)
    return []
