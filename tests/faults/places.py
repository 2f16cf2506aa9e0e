"""The adapters that faults are injected into, each with a real model in a double of its host, or in diffusers itself.

A place runs guided pictures in several ways, so that all of its calls out are reached, and a plain one; and it says
what must be as before after a failure.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest
import torch
from ldm.modules import attention
from torch import Tensor, nn

from asag.hosts.generation import arm
from asag.settings import AsagSettings
from tests.hosts import a1111_double, forge_double
from tests.hosts.guided import AND, FIRST, HIRES, PLAIN
from tests.hosts.reference import real_unet
from tests.hosts.test_diffusers_guider import drive
from tests.installed import installed
from tests.support import snapshot
from tests.tiny_diffusers import inputs, latents, sd3_transformer, sd15_pipe, sd15_unet

SHARED = {"blocks": "mid"}
WHOLE = SHARED | {"reuse": False}
ALL = {"contrast": 0.5, "rescale": 0.5, "unit": "cfg", "figures": True, "blocks": "mid:aligned"}


class Place:
    """One adapter. `ways` are the guided pictures by name; each gives its steps' results."""

    name = ""
    # Whether the user is told under the picture, and not by the log alone.
    has_notes = False
    ways: dict[str, Callable[[], list[Tensor]]]

    def plain(self) -> list[Tensor]:
        """The steps of a picture without ASAG."""
        raise NotImplementedError

    def notes(self) -> list[str]:
        """What the user was told of the last picture."""
        return []

    def state(self) -> list[Any]:
        """What a failure must leave as it was."""
        raise NotImplementedError

    def let_go(self) -> None:
        """Forget what the double itself keeps of a picture."""


def threads() -> list[str]:
    return sorted(each.name for each in threading.enumerate())


class WebUI(Place):
    """One in the double of a WebUI."""

    has_notes = True

    def __init__(self, host: Any, adapter: Any, options: Callable[..., Any]) -> None:
        self.host, self.adapter, self.options = host, adapter, options
        another = SimpleNamespace(title=lambda: "Another extension")
        host.p.scripts = SimpleNamespace(alwayson_scripts=[another])
        self.ways = {}

    def way(self, settings: dict[str, Any], prompts: Any = PLAIN, **options: Any) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            self._begin(prompts, options)
            chosen = AsagSettings.from_mapping({"enabled": True, "scale": 2.0, **settings})
            arm(self.adapter, self.host.p, chosen, unguided=lambda: None)
            return self._sampled()

        return run

    def plain(self) -> list[Tensor]:
        self._begin(PLAIN, {})
        return self._sampled()

    def beside_another(self, run: Callable[[], list[Tensor]]) -> Callable[[], list[Tensor]]:
        """Such a picture with a hook of an extension's in the model, which is known to remember nothing."""

        def hooked() -> list[Tensor]:
            hook = self.host.network().middle_block[0].register_forward_hook(known_hook)
            try:
                return run()
            finally:
                hook.remove()

        return hooked

    def _begin(self, prompts: Any, options: dict[str, Any]) -> None:
        host = self.host
        host.prompts, host.options = prompts, self.options(**{"passes": [FIRST], **options})
        host.comments.clear()
        host.callbacks.swallowed.clear()
        host.p.extra_generation_params.clear()

    @torch.no_grad()
    def _sampled(self) -> list[Tensor]:
        found: list[Tensor] = self.host.p.sample()
        return found

    def notes(self) -> list[str]:
        noted: dict[str, str] = self.host.p.extra_generation_params
        return list(noted.values())

    def let_go(self) -> None:
        self.host.callbacks.swallowed.clear()
        self.host.unconditional.clear()

    def state(self) -> list[Any]:
        host = self.host
        known = {name: list(each) for name, each in host.callbacks.known.items()}
        options = {name: value for name, value in host.p.__dict__.items() if name != "cfg_scale"}
        return [snapshot(host.network()), known, sorted(options), host.p.sample, threads()]


def known_hook(module: nn.Module, args: Any, output: Tensor) -> None:
    """The double of what tomesd hooks in."""


known_hook = FunctionType(known_hook.__code__, {"__name__": "tomesd.patch"}, "known_hook")


class A1111(WebUI):
    name = "a1111"

    def __init__(self, host: Any, adapter: Any) -> None:
        super().__init__(host, adapter, a1111_double.Options)
        noise = ALL | {"start": "0%", "end": "90%"}
        self.ways = {
            "shared": self.way(SHARED),
            "whole": self.way(WHOLE),
            "all": self.way(ALL | {"every": 2}, AND, batched=False),
            "noise": self.way(noise, denoiser="noise"),
            "push": self.way(SHARED | {"unit": "push", "method": "seg"}),
            "edit": self.way(SHARED | {"unit": "cfg"}, edit=True),
            "beside": self.beside_another(self.way(SHARED)),
        }

    def let_go(self) -> None:
        super().let_go()
        self.host.previews.clear()


class Forge(WebUI):
    name = "forge"

    def __init__(self, host: Any, adapter: Any) -> None:
        super().__init__(host, adapter, forge_double.Options)
        self.ways = {
            "shared": self.way(SHARED),
            "whole": self.way(WHOLE),
            "all": self.way(ALL | {"every": 2}, AND, batched=False),
            "noise": self.way(ALL | {"start": "0%", "end": "90%"}, passes=[FIRST, HIRES]),
            "push": self.way(SHARED | {"unit": "push", "method": "seg"}),
            "beside": self.beside_another(self.way(SHARED)),
        }

    def state(self) -> list[Any]:
        patcher = self.host.objects.unet
        return [*super().state(), id(patcher), repr(sorted(patcher.model_options))]


def small_unet() -> nn.Module:
    blocks = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
    blocks |= {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
    return sd15_unet(block_out_channels=(8, 16), layers_per_block=1, **blocks)


class Diffusers(Place):
    name = "diffusers"

    def __init__(self) -> None:
        self.pipe, self.given = sd15_pipe(unet=small_unet()), inputs("sd15", steps=2)
        self.given |= {"height": 64, "width": 64, "latents": self.given["latents"][:, :, :8, :8]}
        self.ways = {
            "shared": lambda: self._run(SHARED),
            "whole": lambda: self._run(WHOLE),
            "all": lambda: self._run(ALL | {"every": 2, "start": "0%", "end": "90%"}),
        }

    def _run(self, settings: dict[str, Any]) -> list[Tensor]:
        return [latents(self.pipe, self.given, scale=1.5, **settings)]

    def plain(self) -> list[Tensor]:
        return [latents(self.pipe, self.given)]

    def state(self) -> list[Any]:
        return [snapshot(self.pipe.unet), sorted(self.pipe.__dict__), threads()]


class Guider(Place):
    """The guider, in the loop of SD3's modular pipeline."""

    name = "guider"

    def __init__(self) -> None:
        from asag.hosts.diffusers_guider import AdversarialSinkhornAttentionGuidance

        self.model, self.kind = sd3_transformer(), AdversarialSinkhornAttentionGuidance
        self.ways = {
            "shared": lambda: self._run({}),
            "whole": lambda: self._run({"reuse": False}),
            "all": lambda: self._run({"unit": "cfg", "contrast": 0.5, "every": 2, "guidance_rescale": 0.5}),
        }

    def _run(self, settings: dict[str, Any]) -> list[Tensor]:
        guider = self.kind(4.0, 1.5, adversarial_guidance_blocks="joint.1", **settings)
        return [drive(guider, self.model, step, 2)[0] for step in range(2)]

    def plain(self) -> list[Tensor]:
        guider = self.kind(4.0, 0.0)
        return [drive(guider, self.model, step, 2)[0] for step in range(2)]

    def state(self) -> list[Any]:
        return [snapshot(self.model), threads()]


@contextmanager
def place(name: str) -> Iterator[Place]:
    """The adapter of that name, in its host."""
    if name in ("diffusers", "guider"):
        yield Diffusers() if name == "diffusers" else Guider()
        return
    double = a1111_double if name == "a1111" else forge_double
    host = double.Host(real_unet(), PLAIN)
    with pytest.MonkeyPatch.context() as patch, installed(host.modules()):
        patch.setattr(attention, "_ATTN_PRECISION", "that of its input")
        if name == "a1111":
            from asag.hosts.a1111 import A1111 as Adapter

            yield A1111(host, Adapter())
        else:
            from asag.hosts.forge import Forge as Adapter

            yield Forge(host, Adapter())


PLACES = ("a1111", "forge", "diffusers", "guider")
