"""The routes under --api-auth, in the fastapi of Forge's gradio and in that of AUTOMATIC1111's."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.gradios import GRADIOS, python_of

REPOSITORY = Path(__file__).parents[1]
# The host's Api is a double: it adds its routes and asks for a password as modules/api/api.py does.
PROGRAM = """
import asyncio, json
import httpx
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from asag.hosts.refused import Refused
from asag.webui import routes

class Api:
    def auth(self, credentials: HTTPBasicCredentials = Depends(HTTPBasic())):
        if (credentials.username, credentials.password) == ("user", "right"):
            return True
        raise HTTPException(status_code=401, detail="no", headers={"WWW-Authenticate": "Basic"})

class Host:
    def checkpoints(self):
        return None, None

    def model(self):
        raise Refused("no model", 422)

async def answers(client, asked, auth):
    return {name: (await client.get(path, auth=auth)).status_code for name, path in asked.items()}

async def statuses(protected, with_api=True):
    app, page = FastAPI(), routes.secret_route()
    if with_api:
        dependencies = [Depends(Api().auth)] if protected else []
        app.add_api_route("/sdapi/v1/txt2img", lambda: {}, methods=["POST"], dependencies=dependencies)
    routes.add_routes(app, Host(), page)
    # What it says of a refusal is what it answers.
    described = app.openapi()["paths"]["/asag/blocks"]["get"]["responses"]["422"]["content"]["application/json"]
    assert described["schema"]["properties"]["detail"]["type"] == "string", described
    asked = {"schema": "/asag/schema", "blocks": "/asag/blocks", "page": "/" + page, "guess": "/asag/guess/blocks"}
    given = {"nobody": None, "wrong": ("user", "wrong"), "right": ("user", "right")}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://host") as client:
        return {who: await answers(client, asked, auth) for who, auth in given.items()}

async def main():
    return [await statuses(True), await statuses(False), await statuses(False, with_api=False)]

print(json.dumps(asyncio.run(main())))
"""
# 422: the double has no model.
OPEN = {"schema": 200, "blocks": 422, "page": 422, "guess": 404}
CLOSED = {"schema": 401, "blocks": 401, "page": 422, "guess": 404}


@pytest.mark.parametrize("version", GRADIOS)
def test_the_routes_ask_for_the_password_of_the_hosts_api(version):
    program = [python_of(version), "-W", "ignore", "-c", PROGRAM]
    done = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    protected, unprotected, without_api = json.loads(done.stdout)
    assert protected == {"nobody": CLOSED, "wrong": CLOSED, "right": OPEN}
    assert unprotected == without_api == {"nobody": OPEN, "wrong": OPEN, "right": OPEN}
