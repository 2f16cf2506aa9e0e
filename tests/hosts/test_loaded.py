"""Which checkpoint is loaded and which is chosen, on doubles of the hosts' modules."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

ONE, TWO = SimpleNamespace(name="one.safetensors"), SimpleNamespace(name="folder/two.safetensors")
ALIASES = {"one [0123]": ONE, "two": TWO}


def told(monkeypatch, model, chosen="", **model_data):
    modules = ModuleType("modules")
    modules.shared = SimpleNamespace(opts=SimpleNamespace(sd_model_checkpoint=chosen))
    data = SimpleNamespace(sd_model=model, **model_data)
    modules.sd_models = SimpleNamespace(model_data=data, checkpoint_aliases=ALIASES)
    monkeypatch.setitem(sys.modules, "modules", modules)
    monkeypatch.delitem(sys.modules, "asag.hosts.loaded", raising=False)
    from asag.hosts.loaded import checkpoints

    monkeypatch.delitem(sys.modules, "asag.hosts.loaded")
    return checkpoints()


LOADED = SimpleNamespace(sd_checkpoint_info=ONE)


@pytest.mark.parametrize(
    ("chosen", "other"), [("one [0123]", None), ("two", "folder/two.safetensors"), ("gone", None), (None, None)]
)
def test_in_a1111_and_reforge_the_setting_says_what_is_chosen(monkeypatch, chosen, other):
    assert told(monkeypatch, LOADED, chosen) == ("one.safetensors", other)


@pytest.mark.parametrize(
    ("parameters", "other"),
    [({}, None), ({"checkpoint_info": None}, None), ({"checkpoint_info": ONE}, None), ({"checkpoint_info": TWO}, TWO)],
)
def test_in_forge_and_neo_the_loading_parameters_say_it(monkeypatch, parameters, other):
    # What the setting names doesn't count: a request's own checkpoint is among the parameters alone.
    found = told(monkeypatch, LOADED, "two", forge_loading_parameters=parameters)
    assert found == ("one.safetensors", other and other.name)


def test_without_a_model_it_is_refused(monkeypatch):
    with pytest.raises(Exception, match="no model is loaded yet"):
        told(monkeypatch, None)
