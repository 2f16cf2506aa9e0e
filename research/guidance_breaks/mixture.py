"""A 2-D Gaussian mixture under the VP-SDE, exactly: its score at every time, its samples, and its tilt by a reward.

The SDE is dx = -½β(t) x dt + √β(t) dw with β from 0.1 at t = 0, the data, to 20 at t = 1, the noise ("When guidance
breaks", Sections 3.1 and 5.1). All tensors are float64: fixed guidance of 30 and more overflows float32 on its way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

BETA_MIN, BETA_MAX = 0.1, 20.0


def beta(time: float) -> float:
    """β(t), per unit of time, for t in [0, 1]: linear from BETA_MIN to BETA_MAX."""
    return BETA_MIN + time * (BETA_MAX - BETA_MIN)


def signal(time: float) -> float:
    """a(t) = exp(-½ ∫₀ᵗ β): what is left of the data in x_t ~ N(a x₀, (1 - a²) I); 1 at t = 0."""
    return math.exp(-0.5 * (BETA_MIN * time + 0.5 * time**2 * (BETA_MAX - BETA_MIN)))


@dataclass(frozen=True)
class Mixture:
    """Σ_k w_k N(μ_k, s² I): `means` (K, 2), `log_weights` (K,) that need not sum to anything, `spread` s."""

    means: Tensor
    log_weights: Tensor
    spread: float

    def at(self, time: float) -> Mixture:
        """The distribution of x_t: again a mixture, with means aμ and variance a²s² + 1 - a²."""
        left = signal(time)
        return Mixture(left * self.means, self.log_weights, math.sqrt(left**2 * (self.spread**2 - 1) + 1))

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) up to a constant, (…), of points (…, 2)."""
        return torch.logsumexp(self._logits(x), dim=-2) - x.square().sum(-1) / (2 * self.spread**2)

    def score(self, x: Tensor) -> Tensor:
        """∇ log p(x), (…, 2), of points (…, 2)."""
        expected = self.means.mT @ torch.softmax(self._logits(x), dim=-2)
        return (expected.mT - x) / self.spread**2

    def _logits(self, x: Tensor) -> Tensor:
        """Each mode's exponent without -‖x‖²/2s², which all share, so that it can't overflow: (…, K, points), as a
        softmax over the last dimension of few modes would take twice the time."""
        own = self.log_weights - self.means.square().sum(-1) / (2 * self.spread**2)
        return own[:, None] + (self.means / self.spread**2) @ x.mT

    def nearest(self, x: Tensor) -> Tensor:
        """The index of the mode nearest to each point, (…) int64, of points (…, 2)."""
        return (x @ self.means.T - self.means.square().sum(-1) / 2).argmax(-1)

    def draw(self, count: int, generator: Generator) -> Tensor:
        """`count` samples, (count, 2), without any diffusion."""
        modes = torch.multinomial(torch.softmax(self.log_weights, 0), count, replacement=True, generator=generator)
        noise = torch.randn(count, 2, dtype=torch.float64, generator=generator)
        return self.means[modes] + self.spread * noise

    def tilted(self, centre: Tensor, scale: float) -> Mixture:
        """The mixture ∝ p(x) exp(-scale ‖x - centre‖²), what guidance is after (the paper's Eq. 1): a product of
        Gaussians, hence a mixture again. centre (2,)."""
        own, pull = 1 / self.spread**2, 2 * scale
        means = (own * self.means + pull * centre) / (own + pull)
        # ∫ N(x; μ, 1/own) exp(-½ pull ‖x - c‖²) dx, up to what all modes share.
        fit = -0.5 * own * pull / (own + pull) * (self.means - centre).square().sum(-1)
        return Mixture(means, self.log_weights + fit, (own + pull) ** -0.5)

    def extent(self) -> float:
        """Half the side of the square about the origin that holds the modes with three of their spreads."""
        return float(self.means.abs().max()) + 3 * self.spread


def ring(count: int, radius: float, spread: float) -> Mixture:
    """`count` modes of equal weight on a circle about the origin, the first one on the x axis."""
    angles = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    means = radius * torch.stack([angles.cos(), angles.sin()], dim=-1)
    return Mixture(means, torch.zeros(count, dtype=torch.float64), spread)
