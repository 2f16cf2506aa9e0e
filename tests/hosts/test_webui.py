"""What holds for every WebUI."""

import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from asag.hosts import webui
from asag.hosts.webui import UnknownWebUI, find_host, log_warnings


@pytest.fixture
def neo(caplog):
    """Forge Neo's log: its root logger drops warnings."""
    asag = logging.getLogger("asag")
    before = asag.level, logging.root.level
    logging.root.setLevel(logging.ERROR)
    asag.setLevel(logging.NOTSET)  # a script that ran before has set it
    yield caplog
    asag.setLevel(before[0])
    logging.root.setLevel(before[1])


def test_warnings_are_in_the_log_of_a_host_that_drops_them(neo):
    logger = logging.getLogger("asag.hosts.generation")
    logger.warning("dropped")
    log_warnings()
    logger.warning("shown")
    logger.info("not shown")
    logging.getLogger("another").warning("dropped")
    assert neo.messages == ["shown"]


@pytest.mark.parametrize(
    ("packages", "reason"), [((), "import of modules"), (("modules_forge",), "it has modules_forge, but")]
)
def test_an_unknown_webui_is_named_no_other_ones_adapter(monkeypatch, packages, reason):
    monkeypatch.setattr(webui, "find_spec", lambda name: name in packages)
    monkeypatch.setitem(sys.modules, "modules", None)
    monkeypatch.delitem(sys.modules, "asag.hosts.a1111", raising=False)
    with pytest.raises(UnknownWebUI, match=rf"doesn't know this WebUI \({reason}.*AUTOMATIC1111 1.10, Forge, reForge"):
        find_host()


class Adapter:
    """Stands for the class of a host's adapter."""


@pytest.mark.parametrize(
    ("packages", "module", "name"),
    [
        ({"modules_forge", "backend"}, "asag.hosts.forge", "Forge"),
        ({"modules_forge", "ldm_patched"}, "asag.hosts.forge", "Forge"),
        ({"backend", "ldm_patched"}, "asag.hosts.a1111", "A1111"),
    ],
    ids=["Forge and Neo", "reForge", "AUTOMATIC1111"],
)
def test_each_webui_has_its_adapter(monkeypatch, packages, module, name):
    monkeypatch.setattr(webui, "find_spec", lambda package: package in packages)
    for each in ("asag.hosts.forge", "asag.hosts.a1111"):
        monkeypatch.setitem(sys.modules, each, None)
    found = ModuleType(module)
    setattr(found, name, Adapter)
    monkeypatch.setitem(sys.modules, module, found)
    assert type(find_host()) is Adapter


@pytest.mark.parametrize(("given", "asks"), [("user:password", True), (None, False)])
def test_how_the_webui_was_started(monkeypatch, given, asks):
    options = ModuleType("modules.shared_cmd_options")
    options.cmd_opts = SimpleNamespace(api_auth=given, ui_config_file="/webui/ui-config.json")
    monkeypatch.setitem(sys.modules, "modules", ModuleType("modules"))
    monkeypatch.setitem(sys.modules, "modules.shared_cmd_options", options)
    assert webui.asks_for_password() is asks
    assert webui.ui_config() == Path("/webui/ui-config.json")
