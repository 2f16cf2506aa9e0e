"""What is kept of each sampled picture, and where: enough for every metric, at half a kilobyte a picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from asag.lab.embedded import drawings
from asag.lab.embedded.classifier import Classifier, objects_right
from research.asag.sampling import Part

_LAYOUT = 4  # cells a side of the colour layout
_RINGS = 12  # of spatial frequency


def describe(images: Tensor, labels: Tensor, classifier: Classifier) -> dict[str, Tensor]:
    """Of pictures (B,3,32,32) in [-1,1], asked for by labels (B,2,2):

    features (B,128) of the classifier; layout (B,48): mean colours of 4x4 cells; spectrum (B,12): log power of
    brightness in rings of spatial frequency; classes (B,24): the classifier's logits per pair; right (B,): whether
    the objects are exactly the asked ones; contrast: the standard deviation of a picture's values; saturation: the mean
    over pixels of (largest - smallest) channel, in [0,1]; clipped: the share of values at the ends of the range.
    """
    with torch.no_grad():
        features = classifier.features(images)
        logits = classifier.head(F.silu(features))
    return {
        "features": features,
        "spectrum": spectrum(images),
        "classes": logits[:, : drawings.PAIRS],
        "right": objects_right(classifier, images, labels).float(),
        **looks(images),
    }


def looks(images: Tensor) -> dict[str, Tensor]:
    """What needs no classifier: layout, contrast, saturation and clipped of `describe`, of pictures of any size."""
    pixels = images.flatten(1)
    return {
        "layout": F.adaptive_avg_pool2d(images, _LAYOUT).flatten(1),
        "contrast": pixels.std(1),
        "saturation": (images.amax(1) - images.amin(1)).mean((1, 2)) / 2,
        "clipped": (pixels.abs() >= 1).float().mean(1),
    }


def spectrum(images: Tensor) -> Tensor:
    """(B,12): natural log of the mean power of brightness in rings around frequency 0, which is left out."""
    power = torch.fft.fft2(images.mean(1)).abs().square() / drawings.SIZE**2
    axis = torch.fft.fftfreq(drawings.SIZE)
    distance = (axis[:, None] ** 2 + axis**2).sqrt() * 2  # 1: the highest along an axis
    ring = (distance * _RINGS).ceil().clamp(max=_RINGS).long() - 1
    return torch.stack([power[:, ring == i].mean(1) for i in range(_RINGS)], 1).clamp(min=1e-8).log()


class Keyed(Protocol):
    """A run, by whose key its files are named."""

    @property
    def key(self) -> str:
        """The same on every machine; another one for whatever makes other pictures."""


class Store:
    """A folder of descriptions: a file per run and part, written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, run: Keyed, part: Part) -> Path:
        return self.folder / run.key / f"{part.captions}-{part.seed}-{part.number}-{part.pictures}.safetensors"

    def has(self, run: Keyed, part: Part) -> bool:
        return self.path(run, part).exists()

    def write(self, run: Keyed, part: Part, described: dict[str, Tensor]) -> None:
        path = self.path(run, part)
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(f".{os.getpid()}")
        save_file({name: values.half().contiguous() for name, values in described.items()}, written)
        os.replace(written, path)

    def read(self, run: Keyed, parts: list[Part]) -> dict[str, Tensor]:
        """All parts' descriptions in one, float32; FileNotFoundError where a part is missing."""
        read = [load_file(self.path(run, part)) for part in parts]
        return {name: torch.cat([each[name] for each in read]).float() for name in read[0]}
