"""Code of others in a model: how it is found and named, and that what it remembers is put back."""

from __future__ import annotations

from functools import partial
from types import FunctionType
from typing import Any

import pytest
import tomesd
import torch
from torch import nn

from asag.hosts.kept_state import KeptState
from asag.hosts.other_code import functions_in, hooks_of, is_stateless, name_of, not_the_hosts
from asag.hosts.reuse import Reuse


def from_file(path: str, source: str, module: str) -> dict[str, Any]:
    """What a file there of that module would define."""
    names: dict[str, Any] = {"__name__": module}
    exec(compile(source, path, "exec"), names)
    return names


def hook_from(path: str, module: str, source: str = "def hook(*args): return None") -> FunctionType:
    return from_file(path, source, module)["hook"]


NEGPIP = hook_from("/home/me/webui/extensions/sd-webui-negpip/scripts/negpip.py", "negpip.py")
FREEU = hook_from("/webui/extensions-builtin/sd_forge_freeu/scripts/forge_freeu.py", "forge_freeu.py")
SPECTRUM = hook_from(
    "/webui/extensions-builtin/sd_forge_spectrum/lib_spectrum/forecaster.py", "lib_spectrum.forecaster"
)
DECORATED = """
import functools, torch
def null_decorator(function):
    def wrapper(*args): return function(*args)
    return wrapper
@torch.no_grad()
@null_decorator
def hook(*args): return None
"""
AROUND_THE_HOSTS = """
import functools, torch
@functools.wraps(torch.nn.functional.linear)
def hook(*args): return None
"""
LOWVRAM = hook_from("/webui/modules/lowvram.py", "modules.lowvram")
CONTROLNET = """
class UnetHook:
    def hook(self):
        def forward_webui(*args): return None
        return forward_webui
hook = UnetHook().hook()
"""


def test_hooks_are_found_wherever_they_are():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert hooks_of(model) == []
    model[0].forward = NEGPIP
    model[1]._forward = FREEU
    model[1].register_forward_hook(SPECTRUM)
    model.register_forward_pre_hook(NEGPIP)
    assert hooks_of(model) == [NEGPIP, NEGPIP, FREEU, SPECTRUM]


def test_the_hosts_own_and_methods_put_back_are_none():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].forward = model[0].forward  # as ControlNet leaves it
    model[0].register_forward_pre_hook(LOWVRAM)
    assert hooks_of(model) == []
    # The method of another module is a hook.
    model.forward = nn.Identity().forward
    assert [name_of(each) for each in [*model.__dict__["_forward_hooks"].values(), model.forward]] == [
        "torch.nn.modules.linear"
    ]


def test_who_takes_the_name_of_what_he_wraps_is_found():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].forward = hook_from("/webui/extensions/other/x.py", "x.py", AROUND_THE_HOSTS)
    assert hooks_of(model) == [model[0].forward]
    # Under torch.no_grad() the host's own stays the host's.
    model[0].forward = torch.no_grad()(LOWVRAM)
    assert hooks_of(model) == []


class Own(nn.Module):
    """Of a module that is no host's."""

    def forward(self, x):
        return x


def test_a_modules_own_method_put_on_it_is_no_hook_and_anothers_is():
    model, other = Own(), Own()
    model.forward = model.forward
    assert hooks_of(model) == []
    model.forward = other.forward
    assert hooks_of(model) == [other.forward]


def test_a_class_whose_forward_was_replaced_is_hooked(monkeypatch):
    class Block(nn.Module):
        def forward(self, x):
            return x

    model = nn.Sequential(Block(), Block())
    assert hooks_of(model) == []
    monkeypatch.setattr(Block, "forward", NEGPIP)
    assert hooks_of(model) == [NEGPIP]


def test_what_is_put_on_the_modules_around_counts():
    around = nn.Identity()
    around.apply_model = NEGPIP
    assert hooks_of(nn.Identity()) == []
    assert hooks_of(nn.Identity(), [around]) == [NEGPIP]


@pytest.mark.parametrize(
    ("function", "name", "stateless"),
    [
        (NEGPIP, "sd-webui-negpip", False),
        (partial(NEGPIP, 1), "sd-webui-negpip", False),
        (FREEU, "sd_forge_freeu", True),
        (SPECTRUM, "sd_forge_spectrum", False),
        (hook_from("/webui/extensions/cn/scripts/hook.py", "scripts.hook", CONTROLNET), "cn", True),
        (hook_from("/webui/extensions/other/scripts/hook.py", "scripts.hook"), "other", False),
        (hook_from("/webui/extensions/tiles/tile_methods/x.py", "tile_methods.x"), "tiles", True),
        (hook_from("/webui/extensions/tiles/tile_methods_2.py", "tile_methods_2"), "tiles", False),
        (hook_from("/webui/extensions/tiles/tile_utils/utils.py", "tile_utils.utils", DECORATED), "tiles", True),
        (hook_from("/webui/extensions/other/x.py", "x.py", DECORATED), "other", False),
        (hook_from("/webui/extensions/other/x.py", "x.py", AROUND_THE_HOSTS), "other", False),
        (
            hook_from("/webui/extensions-builtin/hypertile/hypertile.py", "hypertile", AROUND_THE_HOSTS),
            "hypertile",
            True,
        ),
        # An extension of the same folder's name that isn't built in.
        (hook_from("/webui/extensions/sd_forge_freeu/x.py", "x.py"), "sd_forge_freeu", False),
        (hook_from("<string>", "pasted"), "pasted", False),
    ],
)
def test_who_it_is_and_whether_it_is_known_to_keep_nothing(function, name, stateless):
    assert name_of(function) == name
    assert is_stateless(function) is stateless


class Patch:
    def __call__(self, q):
        return q


def test_functions_are_found_in_the_options():
    patch, method = Patch(), Patch().__call__
    options = {"attn2": {("middle", 0): patch}, "output_block_patch": [FREEU, (method,)], "weight": 0.5}
    assert list(functions_in([options, None])) == [patch, FREEU, method]
    assert name_of(patch) == __name__
    assert not_the_hosts([patch, LOWVRAM]) == [patch]


def test_beside_unknown_code_nothing_is_tried_and_its_name_is_told():
    reuse = Reuse(True)
    assert reuse.distrust([FREEU]) == []
    assert reuse.on
    assert reuse.distrust([FREEU, SPECTRUM, NEGPIP, NEGPIP]) == [SPECTRUM, NEGPIP, NEGPIP]
    assert not reuse.on
    assert reuse.first_reason == "an extension may count the model's calls (sd-webui-negpip, sd_forge_spectrum)"


class State:
    """Counts in every way that a module can."""

    def __init__(self) -> None:
        self.number, self.bank, self.table, self.marks = 0, [], {"at": [0]}, {0}
        self.tensor = torch.zeros(1)

    def count(self) -> None:
        self.number += 1
        self.bank.append(self.number)
        self.table["at"][0] += 1
        self.table[self.number] = True
        self.marks.add(self.number)
        self.tensor = self.tensor + 1
        self.late = True


GLOBAL = 0
SEEN: list[int] = []


def counting():
    state, local = State(), 0

    def hook(*args):
        global GLOBAL
        nonlocal local
        GLOBAL += 1
        SEEN.append(GLOBAL)
        local += 1
        state.count()
        return GLOBAL, list(SEEN), local, state.number, list(state.bank), dict(state.table), set(state.marks)

    return hook, state


@pytest.mark.parametrize("wrap", [lambda hook, state: hook, lambda hook, state: partial(hook, 1)], ids=["", "partial"])
def test_what_hooks_remember_is_put_back(wrap):
    hook, state = counting()
    function = wrap(hook, state)
    before = GLOBAL
    then = KeptState([function])
    first = function()
    second = function()
    with then.again():
        assert function() == first
        assert state.tensor == 1
    assert (GLOBAL, state.number, state.tensor) == (before + 2, 2, torch.full((1,), 2.0))
    with pytest.raises(RuntimeError, match="no"), then.again():
        raise RuntimeError("no")
    assert function()[3] == second[3] + 1
    then.restore()
    assert not hasattr(state, "late")
    assert (state.bank, state.table, state.marks) == ([], {"at": [0]}, {0})


def test_methods_and_objects_that_are_called():
    state = State()
    for function in (state.count, partial(state.count)):
        memory = KeptState([function])
        with memory.again():
            function()
            assert state.number == 1
        assert (state.number, state.bank) == (0, [])


def test_objects_of_others_are_left_alone():
    """A hook that knows the model, or the request, doesn't have them put back."""
    model = nn.Linear(2, 2)

    def hook(*args):
        model.bias.data += 1
        model.mark = True

    memory = KeptState([hook])
    hook()
    memory.restore()
    assert model.mark


class BasicTransformerBlock(nn.Module):
    """The double of ldm's, by whose name tomesd finds it."""

    disable_self_attn = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_token_merging_as_a1111_sets_it_is_stateless() -> None:
    model = nn.Module()
    model.model = nn.Module()
    model.model.diffusion_model = nn.Sequential(BasicTransformerBlock())
    tomesd.apply_patch(model, ratio=0.5, use_rand=False, merge_attn=True)
    # The double's own forward isn't the host's, as ldm's is.
    found = [each for each in hooks_of(model.model.diffusion_model) if name_of(each) != __name__]
    assert {name_of(each) for each in found} == {"tomesd.patch"}
    assert all(is_stateless(each) for each in found)
