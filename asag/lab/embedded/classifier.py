"""The judge: a small conv net that names the objects of a 32x32 picture, whatever their order."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from asag.lab.embedded import drawings

FEATURES = 128
_COUNTS = 5  # none to four objects
_NOISE = 0.06  # drawings are noiseless; samples are not quite, and must not be judged by that


class Classifier(nn.Module):
    """images (B,3,32,32) in [-1,1] -> logits (B,24+5): is such an object there; how many objects are there.

    The first 24 are one per shape-and-colour pair, the last 5 stand for none to four objects, which is how
    a doubled object is noticed.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96)
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise(widths)):
            kernel = 5 if i == 0 else 3
            layers += [nn.Conv2d(before, after, kernel, stride=2, padding=kernel // 2)]
            layers += [nn.BatchNorm2d(after), nn.SiLU(), nn.Conv2d(after, after, 3, padding=1)]
            layers += [nn.BatchNorm2d(after), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.feature = nn.Linear(widths[-1] * 16, FEATURES)
        self.head = nn.Linear(FEATURES, drawings.PAIRS + _COUNTS)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(B,128): the last hidden layer before its nonlinearity, for distances between sets of pictures."""
        features: torch.Tensor = self.feature(self.body(images).flatten(1))
        return features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(F.silu(self.features(images)))
        return logits


def present(labels: torch.Tensor) -> torch.Tensor:
    """labels (B,N,2) -> (B,24) bool: which pairs are in the picture."""
    return F.one_hot(drawings.pair_index(labels), drawings.PAIRS + 1).sum(1)[:, : drawings.PAIRS] > 0


def object_count(labels: torch.Tensor) -> torch.Tensor:
    """labels (B,N,2) -> (B,) int64: how many objects are in the picture."""
    return (labels[:, :, 0] != drawings.NO_SHAPE).sum(1)


@torch.no_grad()
def objects_right(classifier: Classifier, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(B,) bool: the objects of labels (B,N,2), each once and none besides, are what a picture shows."""
    pairs, counts = classifier(images).split([drawings.PAIRS, _COUNTS], 1)
    right: torch.Tensor = ((pairs > 0) == present(labels)).all(1) & (counts.argmax(1) == object_count(labels))
    return right


def train_classifier(steps: int, generator: torch.Generator, batch: int = 64) -> Classifier:
    """A classifier trained on `steps` batches, half drawings and half crowds; half of it slightly noisy."""
    device = generator.device
    classifier = Classifier().to(device)
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=2e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        parts = (drawings.draw(batch // 2, generator), drawings.draw_crowds(batch // 2, generator))
        images = torch.cat([part.images for part in parts])
        pairs = torch.cat([present(part.labels) for part in parts])
        counts = torch.cat([object_count(part.labels) for part in parts])
        strength = torch.rand(len(images), 1, 1, 1, generator=generator, device=device) * 2 - 1
        noise = torch.randn(images.shape, generator=generator, device=device)
        logits = classifier(images + _NOISE * strength.clamp(min=0) * noise)
        loss = F.binary_cross_entropy_with_logits(logits[:, : drawings.PAIRS], pairs.float())
        loss = loss + 0.1 * F.cross_entropy(logits[:, drawings.PAIRS :], counts)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return classifier.eval()


@torch.no_grad()
def accuracy(classifier: Classifier, count: int, seed: int, batch: int = 250) -> float:
    """Share of `count` fresh drawings whose set of objects is named exactly."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [min(batch, count - start) for start in range(0, count, batch)]
    return sum(int(objects_right(classifier, *drawings.draw(size, generator)).sum()) for size in sizes) / count
