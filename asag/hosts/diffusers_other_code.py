"""What other code has put into a diffusers model, and whether it remembers its calls.

A branch adds rows inside the host's call, and a pass of its own is one call more. Code that treats rows together
(tomesd, attention across the batch) or keeps something from one call to the next (DeepCache, HiDiffusion) minds that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from asag.models.base import UnsupportedModel

# Hooks of these packages work row by row and remember nothing: offloading, quantised weights, LoRA.
KNOWN_PACKAGES = frozenset({"torch", "accelerate", "peft", "asag"})
# Of the hooks in diffusers/hooks those that remember nothing of a call; the others are caches.
STATELESS_HOOKS = frozenset(
    {
        "group_offloading",
        "layer_execution_tracker",
        "lazy_prefetch_group_offloading",
        "layerwise_casting",
        "peft_autocast_disable",
    }
)
# IP-Adapter's own package and those made from it: one more attention, over the tokens of an image, row by row.
KNOWN_PROCESSORS = frozenset({"AttnProcessor", "AttnProcessor2_0", "IPAttnProcessor", "IPAttnProcessor2_0"})

_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)
_VALUES = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


@dataclass(frozen=True)
class OtherCode:
    """Code of others in a model: the module's name, what is there, and the object that may remember something."""

    place: str
    what: str
    keeper: Any

    def __str__(self) -> str:
        return f"{self.place or 'the model'} has {self.what}"


def caches(model: nn.Module) -> list[str]:
    """The names of diffusers' own caches that are hooked into a model, whichever function put them there."""
    registries = (getattr(module, "_diffusers_hook", None) for module in model.modules())
    names = {name for registry in registries if registry is not None for name in registry.hooks}
    return sorted(names - STATELESS_HOOKS)


def other_code(model: nn.Module) -> list[OtherCode]:
    """What isn't known to work row by row and to remember nothing, in the order of the model's modules.

    Hooks on the model itself don't count: they are run once for each of the host's calls, outside of both passes.
    """
    return [each for name, module in model.named_modules() for each in _other_code_in(name, module)]


def _other_code_in(name: str, module: nn.Module) -> Iterator[OtherCode]:
    kind, bases = type(module), type(module).__mro__
    packages = [_package(base) for base in bases]
    if packages[0] not in ("torch", "diffusers") and "diffusers" in packages:
        yield OtherCode(name, f"the class {kind.__module__}.{kind.__qualname__}", module)
    forward = module.__dict__.get("forward")
    if hasattr(module, "_hf_hook"):  # accelerate keeps the forward that it wraps
        forward = getattr(module, "_old_forward", None)
    if forward is not None and not hasattr(module, "_diffusers_hook") and not _is_own(forward, kind):
        yield OtherCode(name, f"its forward replaced by {_named(forward)}", forward)
    if name:
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            if _package(hook) not in KNOWN_PACKAGES:
                yield OtherCode(name, f"the hook {_named(hook)}", hook)
    processor = getattr(module, "processor", None)
    if processor is not None and not _is_known_processor(type(processor)):
        yield OtherCode(name, f"the attention processor {type(processor).__name__}", processor)


def _is_known_processor(kind: type) -> bool:
    # PAG's run the rows of the batch differently; those of diffusers/pipelines share attention across it.
    known = kind.__module__.startswith("diffusers.models.") and "PAG" not in kind.__name__
    return known or kind.__name__ in KNOWN_PROCESSORS


def _is_own(forward: Any, kind: type[nn.Module]) -> bool:
    return getattr(forward, "__func__", None) is kind.forward


def _package(given: Any) -> str:
    function = given.func if isinstance(given, partial) else given
    module = getattr(function, "__module__", None) or type(function).__module__
    return module.split(".")[0]


def _named(given: Any) -> str:
    function = given.func if isinstance(given, partial) else given
    return getattr(function, "__qualname__", type(function).__name__)


@contextmanager
def nothing_kept(found: list[OtherCode]) -> Iterator[None]:
    """Around a call of the model that the host doesn't make; raises UnsupportedModel when such code kept something
    of it."""
    before = [Memory(each.keeper) for each in found]
    yield
    for each, memory in zip(found, before, strict=True):
        if Memory(each.keeper) != memory:
            raise UnsupportedModel(
                f"model: {each}, which keeps something of each call of the model, and ASAG makes one more in a step; "
                "allowed: code that keeps nothing"
            )


class Memory:
    """What objects hold at a moment: numbers, texts, which tensors in which version, the state of random generators.

    Looked at are attributes, containers and what functions close over, to some depth. Two memories are equal where
    nothing was seen to change. Of a module its own attributes are looked at, not its weights and submodules.
    """

    DEPTH = 7

    def __init__(self, given: Any) -> None:
        self.values: list[Any] = []
        self.held: list[Any] = []  # so that no other object gets the identity of one that was seen
        self._seen: set[int] = set()
        self._note(given, self.DEPTH)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Memory) and self.values == other.values

    __hash__ = None  # type: ignore[assignment]

    def _note(self, given: Any, depth: int) -> None:
        if isinstance(given, _VALUES):
            self.values.append((type(given), given))
            return
        if isinstance(given, torch.Generator):
            self.values.append(given.get_state().numpy().tobytes())
            return
        container = isinstance(given, (dict, list, tuple, set, frozenset))
        if not container:
            self.held.append(given)
            version = given._version if isinstance(given, Tensor) and not given.is_inference() else 0
            self.values.append((id(given), version))
        if depth == 0 or id(given) in self._seen:
            return
        self._seen.add(id(given))
        self.held.append(given)
        for each in _parts(given):
            self._note(each, depth - 1)


def _parts(given: Any) -> list[Any]:
    """What an object is made of, as far as it may change."""
    if isinstance(given, dict):
        return [each for item in given.items() for each in item]
    if isinstance(given, (list, tuple, set, frozenset)):
        return [len(given), *given]
    if isinstance(given, MethodType):
        return [given.__func__, given.__self__]
    if isinstance(given, partial):
        return [given.func, given.args, given.keywords]
    if isinstance(given, FunctionType):
        cells = [cell.cell_contents for cell in given.__closure__ or () if cell != CellType()]
        return [*cells, given.__defaults__, given.__dict__]
    if isinstance(given, nn.Module):
        return [value for name, value in given.__dict__.items() if name not in _OF_EVERY_MODULE]
    if isinstance(given, (Tensor, type, ModuleType)):
        return []
    return [getattr(given, "__dict__", None)]
