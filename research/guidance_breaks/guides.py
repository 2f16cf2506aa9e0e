"""The ways to hold a reward's gradient in check that "When guidance breaks" compares, each a rule for one step.

A rule is called once per step, from the noise to the data, and gives the guidance term G that takes the place of
λ∇log r; the adaptive one remembers the steps before, so every run needs a rule of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from asag.guidance import AdaptiveScale


class Moment(NamedTuple):
    """What a rule may know at one step. Tensors are (points, dimensions): 2 in the 2-D experiment, 3072 of pictures."""

    x: Tensor
    score: Tensor
    gradient: Tensor
    """∇log r(x)."""
    scale: float
    """λ₀ with its schedule applied."""
    signal: float
    """a(t): x_t ~ N(a x₀, 1 - a²)."""
    gain: float
    """The guided score is score + gain · G: 1 where G is multiplied by β as the score is, 1/β where it isn't."""


Guide = Callable[[Moment], Tensor]


def length(vectors: Tensor) -> Tensor:
    """‖v‖ of each, (…, 1), of vectors (…, dimensions)."""
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return lengths


def bounded(vectors: Tensor, bound: float) -> Tensor:
    """Vectors (…, dimensions), those longer than `bound` cut to that length."""
    return vectors * (bound / length(vectors).clamp_min(bound))


def fixed(moment: Moment) -> Tensor:
    """λ∇log r (Section 3.1)."""
    return moment.scale * moment.gradient


def clip_gradient(bound: float) -> Guide:
    """λ clip(∇log r): the gradient cut to the length `bound`, then scaled. One reading of "gradient clipping"."""
    return lambda moment: moment.scale * bounded(moment.gradient, bound)


def clip_term(bound: float) -> Guide:
    """clip(λ∇log r): the whole term cut to the length `bound`, which the text also says ("bounds the guidance
    term")."""
    return lambda moment: bounded(moment.scale * moment.gradient, bound)


def soft(bound: float) -> Guide:
    """λ tanh(‖∇log r‖ / M) M in the gradient's direction: the paper names "nonlinearities" and no formula."""

    def guide(moment: Moment) -> Tensor:
        size = length(moment.gradient).clamp_min(1e-12)
        return moment.scale * bound * (size / bound).tanh() / size * moment.gradient

    return guide


def dynamic_threshold(extent: float) -> Guide:
    """Dynamic thresholding as in Imagen (Saharia et al. 2022, Section 2.3): the clean point that the guided score
    predicts, x̂₀ = (x + (1 - a²) s) / a, is divided by max|x̂₀| / extent where that is above 1. Imagen takes the
    99.5th percentile of a picture's pixels; of two coordinates that is the larger one. The data's range is
    [-extent, extent]."""

    def guide(moment: Moment) -> Tensor:
        noise = 1 - moment.signal**2
        guided = moment.score + moment.gain * moment.scale * moment.gradient
        clean = (moment.x + noise * guided) / moment.signal
        held = clean * (extent / clean.abs().amax(dim=-1, keepdim=True).clamp_min(extent))
        return (guided - moment.score + moment.signal * (held - clean) / noise) / moment.gain

    return guide


def adaptive(momentum: float, epsilon: float, dimensions: int = 2) -> Guide:
    """λ_t∇log r with λ_t = λ₀ / (EMA‖∇log r‖ + ε) for each point (Eq. 2), by the class that ASAG itself uses.

    AdaptiveScale's size is an RMS, the paper's a norm, √dimensions as large: hence λ₀/√dimensions and ε/√dimensions.
    Its average starts at the first size, not at 0. Sizes are float32 in there; ε is far above their precision.
    """
    root = math.sqrt(dimensions)
    average = AdaptiveScale(momentum, epsilon / root)
    return lambda moment: average(moment.scale / root, moment.gradient) * moment.gradient
