"""The extension in the folders that strangers put it in: copied, cloned, read-only, without a network; and removed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from asag.settings import options
from tests.gradios import GRADIOS, python_of

REPOSITORY = Path(__file__).parents[1]
# Blanks and letters that no 8-bit code page has together.
NAME = "sd webui – ASAG Größe 日本"
# The host is a double: what scripts/asag.py imports of it, and its loader (modules/scripts.py: load_scripts). gradio
# and fastapi are real. A read-only folder and a missing network are doubles: Python refuses the calls that need them.
PROGRAM = """
import contextlib, errno, importlib.util, json, os, runpy, sys
from types import ModuleType, SimpleNamespace

folder, data, read_only = sys.argv[1], sys.argv[2], sys.argv[3] == "read-only"
refused = []
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.truncate", "os.chmod"}

def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        refused.append(event)
        raise OSError(errno.ENETUNREACH, "no network")
    writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if read_only and (writes or event in CHANGES) and isinstance(args[0], (str, bytes, os.PathLike)):
        path = os.fsdecode(args[0])
        if path.startswith(folder):
            # Python does without the files that it compiles.
            if "__pycache__" not in path:
                refused.append(f"{event} {path}")
            raise OSError(errno.EROFS, "read-only", path)

sys.addaudithook(refuse)
import gradio as gr
from fastapi import FastAPI
from fastapi.routing import APIRoute

called = {}

class Script:
    def elem_id(self, name):
        return name

@contextlib.contextmanager
def InputAccordion(value, label, elem_id):
    yield gr.Checkbox(value, label=label, elem_id=elem_id)

def module(name, **content):
    made = sys.modules[name] = ModuleType(name)
    vars(made).update(content)
    return made

callbacks = module("modules.script_callbacks")
for name in ("on_before_ui", "on_app_started", "on_infotext_pasted"):
    setattr(callbacks, name, lambda function, name=name: called.setdefault(name, []).append(function))
scripts = module("modules.scripts", Script=Script, AlwaysVisible=object(), scripts_data=[])
module("modules", script_callbacks=callbacks, scripts=scripts)
module("modules.paths_internal", data_path=data)
module("modules.ui_components", InputAccordion=InputAccordion)
options = SimpleNamespace(api_auth=None, ui_config_file=os.path.join(data, "ui-config.json"))
module("modules.shared_cmd_options", cmd_opts=options)

runpy.run_path(os.path.join(folder, "install.py"))
sys.path.insert(0, folder)
import asag.hosts.webui
from asag.hosts.refused import Refused

class Host:
    def checkpoints(self, wanted=None):
        return None, None
    def model(self):
        raise Refused("no model", 422)

asag.hosts.webui.find_host = Host
specification = importlib.util.spec_from_file_location("asag.py", os.path.join(folder, "scripts", "asag.py"))
loaded = importlib.util.module_from_spec(specification)
specification.loader.exec_module(loaded)
script, app = loaded.AsagScript(), FastAPI()
with gr.Blocks():
    components = script.ui(False)
for function in called["on_app_started"]:
    function(None, app)
from asag.settings import AsagSettings
loaded.presets.save("mine", AsagSettings(scale=2.0))
print(json.dumps({
    "package": os.path.dirname(asag.__file__),
    "components": len(components),
    "routes": [route.path for route in app.routes if isinstance(route, APIRoute)],
    "presets": loaded.presets.names()[5:],
    "refused": refused,
}))
"""


def git(*args: str, cwd: Path) -> str:
    return subprocess.run(["git", *args], cwd=cwd, capture_output=True, text=True, check=True).stdout


@pytest.fixture(params=["cloned", "read-only"])
def extension(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The extension's folder, whose files are those that git tracks here."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("needs a clone of the repository")
    folder = tmp_path / "extensions" / NAME
    if request.param == "cloned":
        git("clone", "--quiet", "--no-hardlinks", str(REPOSITORY), str(folder), cwd=tmp_path)
        return folder
    for name in git("ls-files", "-z", cwd=REPOSITORY).split("\0")[:-1]:
        if (REPOSITORY / name).exists():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, target)
    return folder


def test_it_works_and_leaves_its_presets_alone_behind(
    extension: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    data, home = tmp_path / "webui", tmp_path / "home"
    data.mkdir()
    home.mkdir()
    kind = request.node.callspec.params["extension"]
    before = sorted(path for path in extension.rglob("*") if ".git" not in path.parts)
    environment = {**os.environ, "HOME": str(home), "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONPATH": ""}
    command = [python_of(GRADIOS[0]), "-W", "ignore", "-c", PROGRAM, str(extension), str(data), kind]
    done = subprocess.run(command, cwd=data, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    *told, last = done.stdout.splitlines()
    found = json.loads(last)
    assert told == []
    assert Path(found["package"]) == extension / "asag"
    assert (found["components"], found["routes"]) == (len(options()), ["/asag/schema", "/asag/blocks"])
    assert (found["presets"], found["refused"]) == (["mine"], [])
    after = sorted(path for path in extension.rglob("*") if not {".git", "__pycache__"} & set(path.parts))
    assert after == before
    if kind == "cloned":
        assert git("status", "--porcelain", cwd=extension) == ""
    shutil.rmtree(extension)
    # Some versions of filelock leave an empty file.
    assert {path.name for path in data.iterdir()} - {"asag-presets.json.lock"} == {"asag-presets.json"}
    assert [path for path in home.rglob("*") if "asag" in path.name.lower()] == []
