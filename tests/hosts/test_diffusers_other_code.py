"""What is found of others' code in a model, and what is seen of what it remembers: on doubles, one thing at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from asag.hosts.diffusers_models import denoiser_of, eager
from asag.hosts.diffusers_other_code import Memory, OtherCode, caches, nothing_kept, other_code
from asag.models.base import UnsupportedModel


def of(package: str, name: str = "Own", base: type = nn.Module) -> type:
    """A class of a module of that name."""
    return type(name, (base,), {"__module__": package, "forward": lambda self, x: x})


def hook_of(package: str) -> Callable[..., None]:
    def hook(*given: Any) -> None:
        """Of a package that is named."""

    hook.__module__ = package
    return hook


def model_with(child: nn.Module) -> nn.Module:
    model = of("diffusers.models.unets")()
    model.child = child
    return model


def told(model: nn.Module) -> list[str]:
    return [str(each) for each in other_code(model)]


# What is found ------------------------------------------------------------------------------------------------------


def test_a_plain_model_has_none() -> None:
    assert told(model_with(nn.Linear(1, 1))) == []
    assert told(model_with(of("others.layers")())) == []  # a layer of a user's own, of torch's kind


def test_a_class_made_from_one_of_diffusers_is_named() -> None:
    other = of("others.blocks", "Merged", of("diffusers.models.attention"))
    assert told(model_with(other())) == ["child has the class others.blocks.Merged"]
    assert told(other()) == ["the model has the class others.blocks.Merged"]
    (found,) = other_code(other())
    assert isinstance(found.keeper, other)
    assert told(model_with(of("diffusers.other", "Sub", of("diffusers.models.attention"))())) == []


def test_a_forward_that_was_replaced_is_named() -> None:
    child = nn.Linear(1, 1)
    child.forward = child.forward
    assert told(model_with(child)) == []
    child.forward = partial(hook_of("others"))
    (found,) = other_code(model_with(child))
    assert str(found).startswith("child has its forward replaced by hook_of.")
    assert found.keeper is child.forward
    # accelerate keeps the forward that it wraps, and wraps that of others too.
    child._hf_hook, child._old_forward = object(), nn.Linear.forward.__get__(child)
    assert told(model_with(child)) == []
    child._old_forward = hook_of("others")
    assert told(model_with(child))[0].startswith("child has its forward replaced by hook_of.")
    del child._old_forward
    assert told(model_with(child)) == []
    # diffusers' own registry replaces it; what it does is among the caches or is known.
    other = nn.Linear(1, 1)
    other.forward, other._diffusers_hook = hook_of("diffusers"), SimpleNamespace(hooks={})
    assert told(model_with(other)) == []


@pytest.mark.parametrize("package", ["torch.ao", "accelerate.hooks", "peft.lora", "asag.hosts", "others"])
@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_on_layers_are_named_but_those_of_known_packages(package: str, register: str) -> None:
    hook = hook_of(package)
    child = nn.Linear(1, 1)
    getattr(child, register)(hook)
    found = other_code(model_with(child))
    assert [(each.place, each.keeper) for each in found] == ([("child", hook)] if package == "others" else [])
    assert told(model_with(child)) == (["child has the hook hook_of.<locals>.hook"] if package == "others" else [])
    model = model_with(nn.Linear(1, 1))
    getattr(model, register)(hook)
    assert told(model) == []


class Callable_:
    """A hook that is an object."""

    def __call__(self, *given: Any) -> None:
        """Remembers nothing."""


def test_hooks_that_are_objects_or_partial() -> None:
    child = nn.Linear(1, 1)
    child.register_forward_hook(Callable_())
    child.register_forward_hook(partial(hook_of("others"), 1))
    assert told(model_with(child)) == ["child has the hook Callable_", "child has the hook hook_of.<locals>.hook"]


@pytest.mark.parametrize(
    ("package", "name", "known"),
    [
        ("diffusers.models.attention_processor", "AttnProcessor2_0", True),
        ("diffusers.models.attention_processor", "PAGIdentitySelfAttnProcessor2_0", False),
        ("diffusers.pipelines.text_to_video", "CrossFrameAttnProcessor", False),
        ("ip_adapter.attention_processor", "IPAttnProcessor2_0", True),
        ("ip_adapter.attention_processor", "AttnProcessor", True),
        ("others", "Controller", False),
    ],
)
def test_attention_processors(package: str, name: str, known: bool) -> None:
    child = nn.Linear(1, 1)
    child.processor = type(name, (), {"__module__": package})()
    found = other_code(model_with(child))
    assert [each.keeper for each in found] == ([] if known else [child.processor])
    assert told(model_with(child)) == ([] if known else [f"child has the attention processor {name}"])


def test_caches_are_diffusers_hooks_but_those_that_remember_nothing() -> None:
    model = model_with(nn.Linear(1, 1))
    assert caches(model) == []
    stateless = ("group_offloading", "layerwise_casting", "peft_autocast_disable", "layer_execution_tracker")
    model._diffusers_hook = SimpleNamespace(hooks=dict.fromkeys([*stateless, "lazy_prefetch_group_offloading"]))
    assert caches(model) == []
    assert eager(model) is model
    model.child._diffusers_hook = SimpleNamespace(hooks={"faster_cache": 1, "group_offloading": 2, "a_cache": 3})
    assert caches(model) == ["a_cache", "faster_cache"]
    with pytest.raises(UnsupportedModel, match=r"Own reuses outputs of blocks \['a_cache', 'faster_cache'\]"):
        eager(model)


# What can be guided -------------------------------------------------------------------------------------------------


def test_what_runs_in_a_denoiser() -> None:
    model = model_with(nn.Linear(1, 1))
    assert eager(SimpleNamespace(_orig_mod=model)) is model  # type: ignore[arg-type]
    model.is_cache_enabled = True
    with pytest.raises(UnsupportedModel, match=r"Own reuses outputs of blocks \[\]; allowed: disable_cache"):
        eager(model)
    model.is_cache_enabled = False
    assert eager(model) is model
    model.child._compiled_call_impl = lambda: None
    with pytest.raises(UnsupportedModel, match="Own is compiled in place"):
        eager(model)


def test_the_denoiser_of_a_pipeline() -> None:
    unet, transformer = nn.Linear(1, 1), nn.Linear(1, 1)
    assert denoiser_of(SimpleNamespace(unet=unet, transformer=transformer)) is unet
    assert denoiser_of(SimpleNamespace(unet=None, transformer=transformer)) is transformer
    for kind, message in (("ModularPipeline", "is modular; allowed: its guider"), ("PAGMixin", "perturbs attention")):
        pipe = type("Mine", (type(kind, (), {}),), {"unet": unet})()
        with pytest.raises(UnsupportedModel, match=f"pipe: Mine {message}"):
            denoiser_of(pipe)
    with pytest.raises(UnsupportedModel, match="has no unet and no transformer"):
        denoiser_of(SimpleNamespace(unet="none"))


# What is remembered -------------------------------------------------------------------------------------------------


class Keeper:
    """Code of others that holds this."""

    def __init__(self, held: Any = None) -> None:
        self.held = held

    def run(self) -> None:
        """Does something."""


def closing_over(value: Any) -> Any:
    def run(default: Any = (0,)) -> Any:
        return value, default

    def put(new: Any) -> None:
        nonlocal value
        value = new

    run.put = put  # type: ignore[attr-defined]
    return run


def own_attribute() -> tuple[Any, Callable[[], None]]:
    module: Any = nn.Linear(1, 1)
    module.count = 0
    return module, lambda: setattr(module, "count", 1)


def in_place() -> tuple[Any, Callable[[], None]]:
    keeper = Keeper(torch.zeros(2))
    return keeper, lambda: keeper.held.add_(1)


def another_tensor() -> tuple[Any, Callable[[], None]]:
    keeper = Keeper(torch.zeros(2))
    return keeper, lambda: setattr(keeper, "held", torch.zeros(2))


def drawn() -> tuple[Any, Callable[[], None]]:
    keeper = Keeper(torch.Generator())
    return keeper, lambda: torch.rand(1, generator=keeper.held) and None


def container(held: Any, change: Callable[[Any], Any], wrap: Callable[[Keeper], Any] = lambda each: each) -> Any:
    def made() -> tuple[Any, Callable[[], None]]:
        keeper = Keeper(held())
        return wrap(keeper), lambda: change(keeper.held) and None

    return made


def closed_over() -> tuple[Any, Callable[[], None]]:
    run = closing_over(1)
    return run, lambda: run.put(2)


def functions_own(name: str, value: Any) -> Any:
    def made() -> tuple[Any, Callable[[], None]]:
        run = closing_over(1)
        return run, lambda: setattr(run, name, value)

    return made


def held_deeply(depth: int) -> Any:
    def made() -> tuple[Any, Callable[[], None]]:
        innermost: list[Any] = [0]
        held = innermost
        for _ in range(depth - 1):
            held = [held]
        return held, lambda: innermost.__setitem__(0, 1)

    return made


SEEN = {
    "a number": container(lambda: [0], lambda held: held.append(1)),
    "one for a truth": container(lambda: [True], lambda held: held.__setitem__(0, 1)),
    "a key": container(lambda: {"a": 0}, lambda held: held.update(b=held.pop("a"))),
    "a value": container(lambda: {"a": {"b": 0}}, lambda held: held["a"].update(b=1)),
    "an entry of a set": container(lambda: {1}, lambda held: held.add(2)),
    "a list in a tuple": container(lambda: ([],), lambda held: held[0].append([])),
    "by a method": container(lambda: [0], lambda held: held.append(1), lambda keeper: keeper.run),
    "by a partial's argument": container(
        lambda: [0], lambda held: held.append(1), lambda keeper: partial(print, keeper)
    ),
    "by a partial's name": container(
        lambda: [0], lambda held: held.append(1), lambda keeper: partial(print, at=keeper)
    ),
    "by a partial's function": container(lambda: [0], lambda held: held.append(1), lambda keeper: partial(keeper.run)),
    "a tensor in place": in_place,
    "another tensor": another_tensor,
    "a generator": drawn,
    "what is closed over": closed_over,
    "a default": functions_own("__defaults__", ((1,),)),
    "a function's attribute": functions_own("count", 1),
    "a module's attribute": own_attribute,
    "seven deep": held_deeply(7),
}


@pytest.mark.parametrize("name", SEEN)
def test_what_changes_is_seen(name: str) -> None:
    keeper, change = SEEN[name]()
    code = OtherCode("child", "a hook", keeper)
    before = Memory(keeper)
    with nothing_kept([OtherCode("", "another", None), code]):
        assert Memory(keeper) == before
    with pytest.raises(UnsupportedModel, match="model: child has a hook, which keeps something"), nothing_kept([code]):
        change()
    assert Memory(keeper) != before


def test_what_isnt_looked_at() -> None:
    """Weights, submodules, what lies too deep, and classes."""
    module: Any = nn.Sequential(nn.Linear(1, 1))
    keeper = Keeper([module, Keeper, 1.5, "text", None])
    innermost, change = held_deeply(8)()
    keeper.deep = innermost[0]  # type: ignore[attr-defined]
    before = Memory(keeper)
    with torch.no_grad():
        module[0].weight += 1
    module[0].mark = 1
    Keeper.mark = 1  # type: ignore[attr-defined]
    change()
    assert Memory(keeper) == before
    assert before != "another thing"
    del Keeper.mark  # type: ignore[attr-defined]
