"""The doubles of absent packages: ASAG's modules are imported with them, and nothing of them stays."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

import asag.hosts
from asag.hosts import notes
from tests.installed import importers, installed


def host(name: str) -> dict[str, ModuleType | None]:
    module = ModuleType("modules")
    module.sd_models = SimpleNamespace(name=name)
    return {"modules": module}


def test_modules_that_import_the_package_themselves_or_through_others() -> None:
    assert importers("modules") >= {"asag.hosts.a1111", "asag.hosts.loaded", "asag.webui.copies"}
    assert "asag.webui.paste" in importers("gradio")
    assert not importers("modules") & {"asag.hosts.notes", "asag.hosts.webui", "asag.settings"}


@pytest.mark.parametrize("within", [False, True], ids=["one after the other", "one in the other"])
def test_each_gets_its_own_double_and_nothing_stays(within: bool) -> None:
    with installed(host("first")):
        from asag.hosts import loaded as first

        assert first.sd_models.name == "first"
        if within:
            with installed(host("second")):
                from asag.hosts import loaded

                assert loaded.sd_models.name == "second"
            from asag.hosts import loaded

            assert loaded is sys.modules["asag.hosts.loaded"] is first
    with installed(host("third")):
        from asag.hosts import loaded

        assert loaded.sd_models.name == "third"
        assert sys.modules["asag.hosts.notes"] is notes
    assert "asag.hosts.loaded" not in sys.modules
    assert not hasattr(asag.hosts, "loaded")


def test_what_is_none_cannot_be_imported() -> None:
    with installed({"modules": None}), pytest.raises(ImportError):
        import asag.hosts.loaded  # noqa: F401
