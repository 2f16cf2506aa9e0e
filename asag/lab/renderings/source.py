"""The renderings of a folder as captioned training pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from asag.lab.embedded.drawings import to_latents
from asag.lab.embedded.source import NULL_SHARE, Batch
from asag.lab.renderings.captions import Vocabulary, Words, dropped_rows
from asag.lab.renderings.names import Rendering, held_out
from asag.lab.renderings.pictures import Pictures

_GROUP_SHARE = 0.5  # captions that keep their group, so that both kinds are learnt
TABLE, VOCABULARY = "words.safetensors", "words.json"


class Renderings:
    """Augmented pictures of all renderings whose names aren't held out, each as often as the others.

    `half_size` makes them 32x32, for which the UNet needs a quarter of the time: like SDXL, a model is trained on small
    pictures first and goes on with large ones.
    """

    def __init__(
        self,
        renderings: Sequence[Rendering],
        device: torch.device,
        half_size: bool = False,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        """`vocabulary`: that of a model which has learnt one already. Raises ValueError where it lacks a word."""
        self._half_size = half_size
        held = held_out([rendering.name for rendering in renderings])
        kept = [rendering for rendering in renderings if rendering.name not in held]
        self.names = [rendering.name for rendering in kept]
        # The held-out names' words are all words of kept ones.
        self.vocabulary = vocabulary or Vocabulary.of(self.names, [rendering.group for rendering in kept])
        captions = [f"{rendering.name}, {rendering.group}" for rendering in kept]
        self._rows = torch.tensor([self.vocabulary.rows(caption) for caption in captions], device=device)
        self.pictures = Pictures(kept, device)

    def conditions(self) -> nn.Module:
        return Words(len(self.vocabulary))

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        return self.of(self.choose(count, generator), generator)

    def choose(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Which renderings (count,) to draw."""
        return torch.randint(len(self.names), (count,), generator=generator, device=generator.device)

    def of(self, chosen: torch.Tensor, generator: torch.Generator) -> Batch:
        """Pictures of these renderings (B,)."""
        images = self.pictures.draw(chosen, generator)
        if self._half_size:
            images = F.avg_pool2d(images, 2)
        return Batch(to_latents(images), self._rows[chosen])

    def tokens(self, conditions: nn.Module, labels: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        without_caption = u < NULL_SHARE
        without_group = u > 1 - _GROUP_SHARE * (1 - NULL_SHARE)
        tokens: torch.Tensor = conditions(dropped_rows(labels, without_caption, without_group))
        return tokens

    def save(self, conditions: nn.Module, folder: Path) -> None:
        table = {name: value.detach().half().contiguous() for name, value in conditions.state_dict().items()}
        save_file(table, folder / TABLE)
        words = {"groups": self.vocabulary.groups, "words": self.vocabulary.words}
        (folder / VOCABULARY).write_text(json.dumps(words, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
