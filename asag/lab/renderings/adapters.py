"""What adapters of a trained UNet of renderings learn from: renderings with something beside the caption."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from asag.lab.embedded.source import Batch
from asag.lab.renderings import shipped
from asag.lab.renderings.captions import dropped_rows
from asag.lab.renderings.names import Rendering
from asag.lab.renderings.source import Renderings

# As ControlNet's authors drop half of their captions, so that an adapter learns to say what it can by itself.
CAPTIONS_DROPPED = 0.5
_GROUPS_DROPPED = 0.25
_NEEDED = ("unet/config.json", "scheduler/scheduler_config.json", "words.json", "judge.json")


class BaseError(ValueError):
    """A folder can't be what adapters are trained for. The message names the folder and what is allowed."""


def check_base(folder: Path, renderings: Sequence[Rendering]) -> None:
    """Raises BaseError where `folder` doesn't hold a UNet of renderings with its classifier, or can't read a name."""
    lacking = [name for name in _NEEDED if not (folder / name).exists()]
    if lacking:
        allowed = "a UNet and its classifier, as `python -m asag train --data` exports them"
        raise BaseError(f"{folder} has no {', '.join(lacking)}; allowed: {allowed}")
    try:
        shipped.Captions(folder).embed([rendering.name for rendering in renderings])
    except ValueError as error:
        raise BaseError(f"{folder}: {error}") from error


class Given(NamedTuple):
    """A caption, as rows (B,T) or as tokens (B,T,D), and what the adapter adds to it."""

    caption: torch.Tensor
    added: torch.Tensor


class AdapterSource(ABC):
    """Renderings with the words that the model in `base` has learnt, which stay as they are."""

    def __init__(self, renderings: Sequence[Rendering], base: Path, device: torch.device) -> None:
        captions = shipped.Captions(base)
        self.renderings = Renderings(renderings, device, vocabulary=captions.vocabulary)
        self._words = captions.table.to(device)

    @abstractmethod
    def added(self, rows: torch.Tensor, latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """What goes with pictures of the renderings `rows` (B,), whose latents are (B,12,32,32)."""

    def conditions(self) -> nn.Module:
        """Nothing that is trained."""
        return nn.Module()

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        rows = self.renderings.choose(count, generator)
        latents, captions = self.renderings.of(rows, generator)
        return Batch(latents, Given(captions, self.added(rows, latents, generator)))

    def tokens(self, conditions: nn.Module, labels: Given, u: torch.Tensor) -> Given:
        rows = dropped_rows(labels.caption, u < CAPTIONS_DROPPED, u > 1 - _GROUPS_DROPPED)
        return Given(self._words(rows), labels.added)

    def save(self, conditions: nn.Module, folder: Path) -> None:  # noqa: B027, as an adapter has no words to save
        """Nothing: the words are the base's."""
