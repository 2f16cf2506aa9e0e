"""Code of others that takes part in what a WebUI's model does: found, named, and known to be harmless or not.

Some of it counts its calls: NegPiP (scripts/negpip.py: counter) tells conditional from unconditional passes by the
number of attention calls so far. One call more or fewer, or another number of rows in it, and such code is wrong from
there on. So nothing is tried out inside the host's own pass beside code that isn't known to keep no count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import PurePath
from typing import Any

from torch import nn

# Packages of the hosts themselves, and what torch hooks in: they are no one else's.
HOSTS_OWN = ("modules", "modules_forge", "backend", "ldm_patched", "ldm", "sgm", "torch", "asag")

# Extensions that keep nothing from one call of the model to the next: the module and the beginning of the name of what
# they hook in. Each has a test in tests/webui (test_controlnet.py, test_other_extensions.py, test_networks.py).
STATELESS_CODE = (
    ("scripts.hook", "UnetHook.hook."),  # sd-webui-controlnet; its reference modes: a1111_control.py
    ("scripts.ipadapter.plugable_ipadapter", ""),
    ("hypertile", ""),  # it draws its tiles at random, which random_state.py draws again
    ("networks", "network_"),  # Lora, which is built in: weights alone
    ("tomesd.patch", ""),  # A1111 merges tokens with it, without random numbers: it keeps the size of its input alone
    # multidiffusion-upscaler-for-automatic1111, and what its decorators leave; with regions: conflicts.py
    ("tile_methods", ""),
    ("tile_utils.utils", "null_decorator."),
    ("lib_couple.attention_couple", "AttentionCouple."),  # sd-forge-couple
)
# The same for what is built into Forge and its relatives, by its folder in extensions-builtin (test_controlnet.py,
# test_builtin_extensions.py). Spectrum and Radial Attention aren't among them.
STATELESS_BUILT_IN = {
    "forge_preprocessor_inpaint",
    "forge_preprocessor_reference",
    "forge_preprocessor_tile",
    "sd_forge_controlnet",
    "sd_forge_freeu",
    "sd_forge_hypertile",
    "sd_forge_ipadapter",
    "sd_forge_kohya_hrfix",
    "sd_forge_multidiffusion",
    "sd_forge_perturbed_attention",
    "sd_forge_sag",
    "sd_forge_stylealign",
}

# ControlNet's reference modes replace a transformer block's inner forward, Tiled Diffusion the model's apply_model.
FORWARDS = ("forward", "_forward", "apply_model")


def hooks_of(network: nn.Module, around: Iterable[nn.Module] = ()) -> list[Any]:
    """Every function of others that runs when the network does: put on its modules or their classes, and hooks.

    `around`: modules through which the host calls the network.
    """
    modules = [*around, *network.modules()]
    found = [each for module in modules for each in _hooks_on(module)]
    classes = dict.fromkeys(type(module) for module in modules)
    return not_the_hosts([*found, *(each.forward for each in classes if each.forward.__module__ != each.__module__)])


def _hooks_on(module: nn.Module) -> list[Any]:
    put = [module.__dict__[name] for name in FORWARDS if not _is_its_own(module, name)]
    return [*put, *module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def not_the_hosts(functions: Iterable[Any]) -> list[Any]:
    """Those that aren't the host's."""
    return [each for each in functions if module_of(each).split(".")[0] not in HOSTS_OWN]


def functions_in(given: Any) -> Iterator[Any]:
    """The functions in nested dicts, lists and tuples: what Forge's transformer_options hold."""
    if isinstance(given, dict):
        given = list(given.values())
    if isinstance(given, (list, tuple)):
        for each in given:
            yield from functions_in(each)
    elif callable(given):
        yield given


def is_stateless(function: Any) -> bool:
    """Whether it is known to keep nothing from one call of the model to the next."""
    folder, name = folder_of(function), _code(function).__qualname__
    if folder and folder[0] == "extensions-builtin":
        return folder[1] in STATELESS_BUILT_IN or _is_listed(function, name)
    return _is_listed(function, name)


def name_of(function: Any) -> str:
    """What a user may know it by: the folder of its extension, or else its module's name."""
    folder = folder_of(function)
    return folder[1] if folder else module_of(function)


def module_of(function: Any) -> str:
    """The name of the module that defines a function, method, partial or callable object."""
    return _module_of_code(_code(function))


def folder_of(function: Any) -> tuple[str, str] | None:
    """("extensions" or "extensions-builtin", the extension's folder) that a function comes from, if it does."""
    code = getattr(_code(function), "__code__", None)
    parts = PurePath(code.co_filename).parts if code is not None else ()
    for index, part in enumerate(parts[:-1]):
        if part in ("extensions", "extensions-builtin"):
            return part, parts[index + 1]
    return None


def _is_listed(function: Any, name: str) -> bool:
    module = module_of(function)
    return any(f"{module}.".startswith(f"{known}.") and name.startswith(begin) for known, begin in STATELESS_CODE)


def _code(function: Any) -> Callable[..., Any]:
    """The plain function behind a method, a partial or a callable object; of what decorators wrapped into one another,
    the outermost that isn't the host's or torch's: torch.no_grad wraps others' functions, and these the host's."""
    plain = _plain(function)
    inside = plain
    while _module_of_code(inside).split(".")[0] in HOSTS_OWN:
        wrapped = getattr(inside, "__wrapped__", None)
        if wrapped is None:
            return plain
        inside = _plain(wrapped)
    return inside


def _plain(function: Any) -> Callable[..., Any]:
    while isinstance(function, partial):
        function = function.func
    function = getattr(function, "__func__", function)
    return function if hasattr(function, "__qualname__") else type(function).__call__


def _module_of_code(function: Callable[..., Any]) -> str:
    """Where the function is written: functools.wraps gives it the name of another's module."""
    names = getattr(function, "__globals__", {})
    return names.get("__name__") or getattr(function, "__module__", None) or ""


def _is_its_own(module: nn.Module, name: str) -> bool:
    """Whether a method is that of the module's class. ControlNet puts it on the instances when it is done."""
    put = module.__dict__.get(name)
    own = getattr(type(module), name, None)
    return put is None or (getattr(put, "__self__", None) is module and getattr(put, "__func__", None) is own)
