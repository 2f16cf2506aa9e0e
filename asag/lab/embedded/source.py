"""What training must know of its pictures: how to draw them, and what tokens stand for their captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors.torch import save_file
from torch import nn

from asag.lab.embedded import drawings
from asag.lab.embedded.architecture import Conditions, token_rows

NULL_SHARE = 0.12  # captions dropped, so that the model also learns to sample without one


class Batch(NamedTuple):
    """Clean latents (B,C,H,W) and what the pictures show, as the source itself reads it."""

    latents: torch.Tensor
    labels: Any


class Source(Protocol):
    """Captioned pictures without end."""

    def conditions(self) -> nn.Module:
        """Untrained condition tokens on the CPU."""

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """`count` pictures on the generator's device, a function of its state alone."""

    def tokens(self, conditions: nn.Module, labels: Any, u: torch.Tensor) -> Any:
        """What the model is given of the labels, mostly tokens (B,T,D).

        Uniform numbers u (B,) decide which captions are dropped.
        """

    def save(self, conditions: nn.Module, folder: Path) -> None:
        """The trained tokens in half precision, with what reads captions into them."""


class Drawn:
    """The drawn scenes of `drawings`."""

    def conditions(self) -> nn.Module:
        return Conditions()

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        images, labels = drawings.draw(count, generator)
        return Batch(drawings.to_latents(images), labels)

    def tokens(self, conditions: nn.Module, labels: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return _table(conditions)[token_rows(labels, u < NULL_SHARE)]

    def save(self, conditions: nn.Module, folder: Path) -> None:
        save_file({"table": _table(conditions).detach().half()}, folder / "conditions.safetensors")


def _table(conditions: nn.Module) -> torch.Tensor:
    assert isinstance(conditions, Conditions)
    return conditions.table()
