"""Two copies of the extension, loaded one after the other as a WebUI loads its scripts."""

import importlib
import io
import json
import subprocess
import tarfile
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock, Mock

import pytest

from tests.gradios import GRADIOS, python_of
from tests.installed import installed

REPOSITORY = Path(__file__).parents[1]
# The host is a double: what scripts/asag.py imports of it, its loader (modules/scripts.py: load_scripts) and its rule
# of which classes are scripts.
PROGRAM = """
import contextlib, importlib.util, inspect, json, sys
from types import ModuleType, SimpleNamespace

first, second, data = sys.argv[1:]
registered = []

class Script:
    def elem_id(self, name):
        return name

class InputAccordion:
    def __init__(self, value, label, elem_id):
        self.value, self.label = value, label
    def __enter__(self):
        return self
    def __exit__(self, *given):
        pass

def module(name, **content):
    made = sys.modules[name] = ModuleType(name)
    vars(made).update(content)
    return made

callbacks = module("modules.script_callbacks")
for name in ("on_before_ui", "on_app_started", "on_infotext_pasted"):
    setattr(callbacks, name, lambda function, name=name: registered.append(name))
scripts = module("modules.scripts", Script=Script, AlwaysVisible=object(), scripts_data=[])
module("modules", script_callbacks=callbacks, scripts=scripts)
module("modules.paths_internal", data_path=data)
module("modules.ui_components", InputAccordion=InputAccordion)
module("modules.shared_cmd_options", cmd_opts=SimpleNamespace(api_auth=None))

def load(folder):
    before = sys.path
    sys.path = [folder] + sys.path
    try:
        if folder == first:
            import asag.hosts.webui
            asag.hosts.webui.find_host = lambda: registered.append("find_host")
        spec = importlib.util.spec_from_file_location("asag.py", folder + "/scripts/asag.py")
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    finally:
        sys.path = before
    found = vars(loaded).values()
    return [each for each in found if inspect.isclass(each) and issubclass(each, scripts.Script)]

class P:
    def __init__(self):
        self.comments, self.extra_generation_params = [], {}
        self.comment = self.comments.append
    def sample(self):
        return "image"

def answer(script, *args):
    p = P()
    script.process_batch(p, *args)
    try:
        return p.sample()
    except Exception as error:
        return [error.status_code, str(error)]

ones, count = load(first), len(registered)
others = load(second)
one, other = ones[0](), others[0]()
accordion = other.ui(False)[0]
print(json.dumps({
    "classes": [len(ones), len(others)],
    "titles": [one.title(), other.title()],
    "registered": [count, len(registered) - count],
    "label": accordion.label,
    "off": [answer(other, False), answer(other, {"enabled": False, "scale": 2}), answer(other)],
    "on": [answer(other, True), answer(other, {"enabled": True, "scale": 2})],
}))
"""


def check(python, folders, data):
    """The first of two copies works, and the second one says so."""
    program = [python, "-W", "ignore", "-c", PROGRAM, *folders, str(data)]
    done = subprocess.run(program, cwd=data, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = f"ASAG is installed twice. The copy in {folders[0]} works; the copy in {folders[1]} does nothing. "
    assert done.stderr.count(told) == 3  # once when it is loaded, once for each request
    found = json.loads(done.stdout)
    assert found["classes"] == [1, 1]
    assert found["titles"] == ["ASAG", "ASAG (second copy)"]
    assert found["registered"] == [5, 0]
    assert "second copy" in found["label"]
    assert found["off"] == ["image"] * 3
    assert [(status, message.startswith(told)) for status, message in found["on"]] == [(422, True)] * 2


@pytest.mark.parametrize("version", GRADIOS)
@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_the_second_copy_says_so_and_leaves_the_first_alone(tmp_path, version, order):
    python = python_of(version)
    folders = [str(tmp_path / name) for name in order]
    for folder in folders:
        # Links to one folder are two copies all the same.
        Path(folder).symlink_to(REPOSITORY)
    check(python, folders, tmp_path)


# The first revision with settings' units.
OLDER = "dae3eab"


@pytest.mark.parametrize("is_first", [True, False])
def test_an_older_copy_beside_a_newer_one(tmp_path, is_first):
    """Python gives both the package of the first."""
    python, older = python_of("gradio4"), tmp_path / "older"
    archive = subprocess.run(["git", "archive", OLDER, "asag", "scripts"], cwd=REPOSITORY, capture_output=True)
    if archive.returncode:
        pytest.skip("no clone with the whole history of the repository")
    older.mkdir()
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(older, filter="data")
    folders = [str(older), str(REPOSITORY)]
    check(python, folders if is_first else folders[::-1], tmp_path)


def test_a_copy_is_known_by_its_folder(monkeypatch):
    """In this process, with doubles of gradio and the host."""
    doubles = {name: ModuleType(name) for name in ("gradio", "modules", "modules.scripts", "modules.ui_components")}
    scripts = doubles["modules"].scripts = doubles["modules.scripts"]
    scripts.Script, scripts.AlwaysVisible = type("Script", (), {"elem_id": lambda self, name: name}), object()
    written = doubles["gradio"].HTML = Mock()
    accordion = doubles["modules.ui_components"].InputAccordion = MagicMock()
    with installed(doubles):
        copies = importlib.import_module("asag.webui.copies")
    assert copies.first_copy(str(REPOSITORY / "scripts" / "asag.py")) is None
    assert copies.first_copy("/other <b>/scripts/asag.py") == REPOSITORY
    script = copies.second_copy(REPOSITORY, "/other <b>/scripts/asag.py")()
    assert (script.title(), script.show(False)) == ("ASAG (second copy)", scripts.AlwaysVisible)
    assert script.ui(False) == [accordion.return_value.__enter__.return_value]
    assert "the copy in /other &lt;b&gt; does nothing" in written.call_args.args[0]
    refused = []
    monkeypatch.setattr(copies.generation, "refuse", lambda p, error: refused.append((p, error.status_code)))
    for switch in (False, {"enabled": False}):
        script.process_batch("p", switch)
    assert refused == []
    for switch in (True, {"enabled": True}):
        script.process_batch("p", switch)
    assert refused == [("p", 422)] * 2
