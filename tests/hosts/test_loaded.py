"""Which checkpoint is loaded and which is chosen, on doubles of the hosts' modules."""

from types import ModuleType, SimpleNamespace

import pytest

from tests.installed import installed

ONE, TWO = SimpleNamespace(name="one.safetensors"), SimpleNamespace(name="folder/two.safetensors")
ALIASES = {"one [0123]": ONE, "two": TWO}


def told(model, chosen="", wanted=None, **model_data):
    modules = ModuleType("modules")
    modules.shared = SimpleNamespace(opts=SimpleNamespace(sd_model_checkpoint=chosen))
    data = SimpleNamespace(sd_model=model, **model_data)
    modules.sd_models = SimpleNamespace(model_data=data, checkpoint_aliases=ALIASES)
    with installed({"modules": modules}):
        from asag.hosts.loaded import checkpoints

        return checkpoints(wanted)


LOADED = SimpleNamespace(sd_checkpoint_info=ONE)


@pytest.mark.parametrize(("chosen", "other"), [("one [0123]", None), ("two", TWO), ("gone", None), (None, None)])
def test_in_a1111_and_reforge_the_setting_says_what_is_chosen(chosen, other):
    assert told(LOADED, chosen) == (ONE, other)


@pytest.mark.parametrize(
    ("parameters", "other"),
    [({}, None), ({"checkpoint_info": None}, None), ({"checkpoint_info": ONE}, None), ({"checkpoint_info": TWO}, TWO)],
)
def test_in_forge_and_neo_the_loading_parameters_say_it(parameters, other):
    # What the setting names doesn't count: a request's own checkpoint is among the parameters alone.
    found = told(LOADED, "two", forge_loading_parameters=parameters)
    assert found == (ONE, other)


@pytest.mark.parametrize("model_data", [{}, {"forge_loading_parameters": {"checkpoint_info": ONE}}])
def test_a_requests_own_checkpoint_comes_first_if_the_host_knows_it(model_data):
    assert told(LOADED, "one [0123]", wanted="two", **model_data) == (ONE, TWO)
    assert told(LOADED, "two", wanted="one [0123]", **model_data) == (ONE, None)
    assert told(LOADED, "one [0123]", wanted="gone", **model_data) == (ONE, None)


@pytest.mark.parametrize("model", [None, SimpleNamespace()], ids=["A1111", "Forge"])
def test_before_any_is_loaded(model):
    assert told(model, "two") == (None, TWO)
    assert told(model, "gone") == (None, None)
