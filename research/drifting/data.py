"""What the generators of `drifting` learn: two mixtures in the plane and scikit-learn's digits, in common units.

Every data set is shifted to mean 0 and scaled to total variance 1 (the sum over coordinates), so that two of its
points are a squared distance of 2 apart on average and a temperature means the same in each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

MIXTURES = ("ring", "grid")
CONFIDENCE = 0.9


def themselves(points: Tensor) -> Tensor:
    return points


class Target(NamedTuple):
    """Data to learn and the means to judge samples of it; points are (count, d) float32.

    `classify` maps points to (count,) int64: the class of each, or -1 where it is none with confidence.
    `features` maps points to (count, e) float32 for Fréchet distances.
    """

    name: str
    train: Tensor
    held_out: Tensor
    classes: int
    latent: int
    classify: Callable[[Tensor], Tensor]
    features: Callable[[Tensor], Tensor] = themselves
    restore: Callable[[Tensor], Tensor] | None = None


def load(name: str) -> Target:
    """The target "ring", "grid" or "digits"; always the same data.

    Raises:
        ValueError: naming what is allowed.
    """
    if name == "digits":
        return digits()
    if name in MIXTURES:
        return mixture(name)
    raise ValueError(f"name: {name!r}; allowed: {', '.join(MIXTURES)}, digits")


def mixture(name: str, train: int = 4096, held_out: int = 1000) -> Target:
    """Eight Gaussians on a circle ("ring") or 25 on a square lattice ("grid"), drawn from a fixed seed.

    A Gaussian's standard deviation is a sixth of the distance to its neighbour. A point belongs to a mode within three
    standard deviations of its centre, which is half-way to the next.
    """
    if name == "ring":
        angles = torch.arange(8) * (2 * math.pi / 8)
        centres = torch.stack([angles.cos(), angles.sin()], dim=1)
    else:
        centres = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0)) - 2
    deviation = float(torch.pdist(centres).min()) / 6
    scale = 1 / math.sqrt(float(centres.var(dim=0, correction=0).sum()) + 2 * deviation**2)
    centres, deviation = centres * scale, deviation * scale
    generator = torch.Generator().manual_seed(0)

    def drawn(count: int) -> Tensor:
        modes = torch.randint(len(centres), (count,), generator=generator)
        return centres[modes] + deviation * torch.randn(count, 2, generator=generator)

    def classify(points: Tensor) -> Tensor:
        distance, mode = torch.cdist(points, centres).min(dim=1)
        return torch.where(distance <= 3 * deviation, mode, -1)

    return Target(name, drawn(train), drawn(held_out), len(centres), 2, classify)


def digits(principal: int = 20) -> Target:
    """scikit-learn's 1797 digits of 8x8 pixels, two thirds to learn from and one third held out.

    The classifier is a small perceptron that saw the first part only; a digit counts when its probability is at
    least `CONFIDENCE`. Features are the first `principal` principal components of the first part.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPClassifier

    pixels, labels = load_digits(return_X_y=True)
    train, held_out, train_labels, _ = train_test_split(
        pixels, labels, test_size=1 / 3, random_state=0, stratify=labels
    )
    mean, scale = train.mean(axis=0), math.sqrt(train.var(axis=0).sum())
    train, held_out = (torch.from_numpy((part - mean) / scale).float() for part in (train, held_out))
    classifier = MLPClassifier(hidden_layer_sizes=(64,), max_iter=300, random_state=0)
    # Its step sizes suit coordinates of variance 1.
    widened = math.sqrt(train.shape[1])
    classifier.fit(train.numpy() * widened, train_labels)
    directions = torch.linalg.svd(train, full_matrices=False).Vh[:principal]

    def classify(points: Tensor) -> Tensor:
        probability, digit = torch.from_numpy(classifier.predict_proba(points.numpy() * widened)).max(dim=1)
        return torch.where(probability >= CONFIDENCE, digit, -1)

    def restore(points: Tensor) -> Tensor:
        """Points (count, 64) to pixels (count, 8, 8), 0 to 16."""
        pixels: Tensor = (points.double() * scale + torch.from_numpy(mean)).unflatten(1, (8, 8))
        return pixels

    return Target("digits", train, held_out, 10, 16, classify, lambda points: points @ directions.T, restore)
