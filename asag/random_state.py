"""Random numbers drawn inside a model: the perturbed pass needs the same as the host's own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn


class RandomState:
    """The random generators, the CPU's, the device's, HyperTile's and, of a `model` in which tomesd merges tokens,
    tomesd's, as they were when this was made.

    ControlNet's reference modes draw noise inside the model, HyperTile every layer's tiles: the perturbed pass needs
    the same for δ to be that of the perturbation, and what comes after it must draw what it would have drawn without.
    """

    def __init__(self, device: torch.device, model: nn.Module | None = None) -> None:
        self.device, self.model = device, model
        self.generators: list[tuple[Callable[[Any], object], Any]] = [(torch.set_rng_state, torch.get_rng_state())]
        if device.type in ("cuda", "xpu"):
            backend = getattr(torch, device.type)
            # The device's own generator: a host started for another device doesn't make that one the current.
            self.generators.append((partial(backend.set_rng_state, device=device), backend.get_rng_state(device)))
        elif device.type == "mps":
            self.generators.append((torch.mps.set_rng_state, torch.mps.get_rng_state()))
        tiles = getattr(sys.modules.get("hypertile"), "RNG_INSTANCE", None)
        if tiles is not None:
            self.generators.append((tiles.setstate, tiles.getstate()))
        merging = getattr(model, "_tome_info", None)
        if merging is not None:
            keeper = merging["args"]
            self.generators.append((partial(_set_generator, keeper), _copied(keeper["generator"])))

    def restore(self) -> None:
        for set_state, state in self.generators:
            set_state(state)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw the numbers from then; afterwards go on where the generators are now."""
        now = RandomState(self.device, self.model)
        self.restore()
        try:
            yield
        finally:
            now.restore()


def _set_generator(keeper: dict[str, Any], generator: torch.Generator | None) -> None:
    """tomesd (patch.py: compute_merge) makes its generator from torch's at the first draw; until then it has None."""
    keeper["generator"] = _copied(generator)


def _copied(generator: torch.Generator | None) -> torch.Generator | None:
    return None if generator is None else torch.Generator(generator.device).set_state(generator.get_state())
