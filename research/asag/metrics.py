"""Metrics of a set of pictures, with errors from leaving out one block of captions at a time.

Two cells have the same captions and start from the same noise, so the error of a difference is that of paired blocks:
most of what makes a set better or worse by chance does so in both. Jackknife: Efron & Stein 1981; delete-a-group form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

BLOCKS = 40


class Estimate(NamedTuple):
    """A metric over all pictures, and with each block left out (BLOCKS,) float64."""

    value: float
    without: Tensor

    @property
    def error(self) -> float:
        return jackknife_error(self.without)

    def minus(self, other: Estimate) -> tuple[float, float]:
        """The difference to another cell's, and its paired standard error."""
        return self.value - other.value, jackknife_error(self.without - other.without)


def jackknife_error(without: Tensor) -> float:
    """Standard error from the estimates (G,) that leave out one of G blocks each."""
    count = len(without)
    return float(((count - 1) / count * (without - without.mean()).square().sum()).sqrt())


def blocks_of(captions: int, seeds: int) -> Tensor:
    """Block (seeds * captions,) of each picture, seeds one after another: a caption's pictures share theirs."""
    return (torch.arange(captions) * BLOCKS // captions).repeat(seeds)


def _sums(values: Tensor, block: Tensor) -> Tensor:
    return torch.zeros(BLOCKS, *values.shape[1:], dtype=torch.float64).index_add_(0, block, values.double())


def _estimate(sums: list[Tensor], function: Callable[..., float]) -> Estimate:
    """`function` of the totals of block sums, with all blocks and without each."""
    totals = [each.sum(0) for each in sums]
    without = [function(*(total - each[i] for total, each in zip(totals, sums, strict=True))) for i in range(BLOCKS)]
    return Estimate(function(*totals), torch.tensor(without, dtype=torch.float64))


def mean(values: Tensor, block: Tensor) -> Estimate:
    """Of values (B,)."""
    return _estimate([_sums(values, block), torch.bincount(block, minlength=BLOCKS)], lambda total, n: float(total / n))


class Frechet:
    """Fréchet distance to the normal distribution fitted to reference features (N,d) (Heusel et al. 2017)."""

    def __init__(self, reference: Tensor) -> None:
        reference = reference.double()
        self.mean = reference.mean(0)
        covariance = torch.cov(reference.T)
        values, vectors = torch.linalg.eigh(covariance)
        self.trace = covariance.trace()
        self.root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T

    def __call__(self, features: Tensor, block: Tensor) -> Estimate:
        """Of features (B,d) with block (B,)."""
        features = features.double()
        count = torch.bincount(block, minlength=BLOCKS).double()
        outer = torch.stack([features[block == i].T @ features[block == i] for i in range(BLOCKS)])
        return _estimate([count, _sums(features, block), outer], self._distance)

    def _distance(self, count: Tensor, total: Tensor, outer: Tensor) -> float:
        centre = total / count
        covariance = (outer - count * torch.outer(centre, centre)) / (count - 1)
        # tr((AB)^1/2) by the eigenvalues of A^1/2 B A^1/2, which is symmetric.
        cross = torch.linalg.eigvalsh(self.root @ covariance @ self.root).clamp(min=0).sqrt().sum()
        return float((centre - self.mean).square().sum() + self.trace + covariance.trace() - 2 * cross)


class Kernel:
    """Unbiased squared MMD with the cubic kernel of KID (Bińkowski et al. 2018) to reference features (N,d).

    Features are divided by the reference's RMS: the kernel's constant presumes features of size 1. Products are taken
    on the reference's device.
    """

    def __init__(self, reference: Tensor) -> None:
        self.size = reference.double().square().mean().sqrt()
        self.reference = reference.double() / self.size
        inner = self._kernel(self.reference, self.reference)
        count = len(reference)
        self.own = float((inner.sum() - inner.trace()) / (count * (count - 1)))

    def _kernel(self, a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def __call__(self, features: Tensor, block: Tensor) -> Estimate:
        """Of features (B,d) with block (B,)."""
        features = features.to(self.reference.device).double() / self.size
        groups = [features[(block == i).to(features.device)] for i in range(BLOCKS)]
        sizes = torch.tensor([len(group) for group in groups], dtype=torch.float64)
        across = torch.stack([self._kernel(group, self.reference).sum() for group in groups]).cpu()
        within = torch.zeros(BLOCKS, BLOCKS, dtype=torch.float64)
        for i, a in enumerate(groups):
            for j in range(i, BLOCKS):
                kernel = self._kernel(a, groups[j])
                within[i, j] = within[j, i] = float(kernel.sum() - (kernel.trace() if i == j else 0))

        def distance(kept: Tensor) -> float:
            count = sizes[kept].sum()
            own = within[kept][:, kept].sum() / (count * (count - 1))
            return float(own + self.own - 2 * across[kept].sum() / (count * len(self.reference)))

        every = torch.ones(BLOCKS, dtype=torch.bool)
        without = [distance(every & (torch.arange(BLOCKS) != i)) for i in range(BLOCKS)]
        return Estimate(distance(every), torch.tensor(without, dtype=torch.float64))


def inception_like(logits: Tensor, block: Tensor) -> Estimate:
    """exp of the mean KL(p(y|x) ‖ p(y)) (Salimans et al. 2016), p(y|x) the SoftMax of logits (B,C)."""
    log = logits.double().log_softmax(1)
    own = _sums((log.exp() * log).sum(1), block)
    count = torch.bincount(block, minlength=BLOCKS).double()

    def score(total: Tensor, own: Tensor, count: Tensor) -> float:
        marginal = total / count
        return float((own / count - torch.xlogy(marginal, marginal).sum()).exp())

    return _estimate([_sums(log.exp(), block), own, count], score)


def diversity(layout: Tensor, seeds: int, block: Tensor) -> Estimate:
    """Mean RMS difference of the layouts (seeds * captions, d) of two pictures of a caption with other noise."""
    stacked = layout.unflatten(0, (seeds, -1))
    pairs = [(i, j) for i in range(seeds) for j in range(i)]
    apart = [(stacked[i] - stacked[j]).square().mean(1).sqrt() for i, j in pairs]
    return mean(torch.stack(apart).mean(0), block[: stacked.shape[1]])


class Metrics:
    """All metrics, against the descriptions of reference drawings (see records.describe)."""

    def __init__(self, reference: dict[str, Tensor], kernel_rows: int = 4000) -> None:
        self.distances: dict[str, tuple[str, Callable[[Tensor, Tensor], Estimate]]] = {
            "fd": ("features", Frechet(reference["features"])),
            "fd_layout": ("layout", Frechet(reference["layout"])),
            "fd_spectrum": ("spectrum", Frechet(reference["spectrum"])),
            "kid": ("features", Kernel(reference["features"][:kernel_rows])),
        }

    def __call__(self, described: dict[str, Tensor], seeds: int) -> dict[str, Estimate]:
        """Estimates by name; pictures seed by seed, each seed's in the order of the captions.

        fd, fd_layout, fd_spectrum, kid: lower is better. right, where it is described: higher is better. is_like,
        contrast, saturation, clipped and diversity are to be compared with those of drawings.
        """
        block = blocks_of(len(described["contrast"]) // seeds, seeds)
        found = {name: metric(described[kind], block) for name, (kind, metric) in self.distances.items()}
        found["is_like"] = inception_like(described["classes"], block)
        for name in ("right", "contrast", "saturation", "clipped"):
            if name in described:
                found[name] = mean(described[name], block)
        if seeds > 1:
            found["diversity"] = diversity(described["layout"], seeds, block)
        return found
