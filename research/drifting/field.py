"""The drift field of one-step generators in its cross-minus-self form, on the operator's own Sinkhorn core.

A model's sample x_i is to move by ``V_i = sum_j P_ij y_j - sum_j Q_ij x_j``: P couples it with the data y, Q with the
model's samples themselves, and the rows of both sum to 1. With logits ``L_ij = (2 x_i y_j - |y_j|^2) / temperature``,
which are ``-|x_i - y_j|^2 / temperature`` up to one number per row, ``softmax_rows(L)`` is the one-sided Gibbs kernel:
``-|y_j|^2 / temperature`` is a key potential before any sweep. Sweeps from there make it the entropic optimal
transport between uniform marginals, the two-sided coupling. So one function, at 0 sweeps or many, gives both fields.

Left to itself a one-sided Q couples a sample mostly with itself once the temperature is below its distance to others,
and repels no more. Without those pairs, Q is to x what P is to y: drawn from the data, a sample's expected drift is 0.

Source: the abstract of "Sinkhorn-Drifting Generative Models" (2026), which states this form in words. Its squared
distance and its temperature's unit are this project's reading of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from asag.sinkhorn import StreamingScores, bound_logits, iterate

# Sinkhorn's iteration takes about (distance squared / temperature) sweeps to move mass between modes. Potentials of a
# hotter problem, four times hotter each, are a start from which a few do.
COOLING = 4
SWEEPS = 5


def one_sided_field(samples: Tensor, data: Tensor, temperature: float, self_pairs: bool = True) -> Tensor:
    """The drift with row-normalised Gibbs kernels ``exp(-|x - y|^2 / temperature)``.

    Args:
        samples: (n, d) float32 or float64, the model's; or (groups, n, d), where groups don't see each other.
        data: (m, d) or (groups, m, d), same dtype; m may differ from n.
        temperature: above 0, in squared units of the samples.
        self_pairs: whether Q may couple a sample with itself.

    Returns:
        The samples' shape, dtype and units.

    Raises:
        ValueError: naming the argument, the value and what is allowed.
    """
    if self_pairs:
        return _field(samples, data, temperature, 0, 0.0)
    return transport(samples, data, data, temperature, 0) - _moved_to_others(samples, temperature)


def two_sided_field(
    samples: Tensor, data: Tensor, temperature: float, sweeps: int = SWEEPS, hottest: float = 0.0
) -> Tensor:
    """The drift with entropic optimal-transport couplings; the rest is as of `one_sided_field`.

    `sweeps` (at least 1) and `hottest` are those of `transport`.
    """
    if sweeps < 1:
        raise ValueError(f"sweeps: {sweeps!r}; allowed: at least 1")
    return _field(samples, data, temperature, sweeps, hottest)


def coupling(samples: Tensor, data: Tensor, temperature: float, sweeps: int = 0, hottest: float = 0.0) -> Tensor:
    """The matrix (n, m), or (groups, n, m), that `transport` multiplies values with, in their dtype; rows sum to 1.

    Arguments and errors as of `transport`. Converged, columns sum to n / m, and it is n times POT's plan.
    """
    identity = torch.eye(data.shape[-2], dtype=data.dtype, device=data.device)
    return transport(samples, data, identity.expand(*data.shape[:-2], -1, -1), temperature, sweeps, hottest)


def transport(
    samples: Tensor, data: Tensor, values: Tensor, temperature: float, sweeps: int, hottest: float = 0.0
) -> Tensor:
    """Coupling times values, the coupling normalised over rows after Sinkhorn's sweeps.

    Args:
        samples: (n, d) or (groups, n, d), float32 or float64.
        data: (m, d) or (groups, m, d), same dtype.
        values: (m, e) or (groups, m, e), same dtype.
        temperature: above 0, in squared units of the samples.
        sweeps: at each temperature; 0 is the one-sided kernel.
        hottest: start at the largest ``temperature * COOLING^k`` that doesn't exceed this, and go through all below.
            The plan that many sweeps converge to doesn't depend on it.

    Returns:
        (n, e) or (groups, n, e), in the samples' dtype.

    Raises:
        ValueError: naming the argument, the value and what is allowed.
    """
    _check(samples, data, temperature)
    grouped = samples.ndim == 3
    query, key, value = (tensor if grouped else tensor[None] for tensor in (samples, data, values))
    # Distances don't see a common shift, but the rounding of products does.
    centre = key.mean(dim=1, keepdim=True)
    query, key = query - centre, key - centre
    stages = max(math.floor(math.log(max(hottest, temperature) / temperature, COOLING)), 0) if sweeps else 0
    # Potentials in units of cost carry over from one temperature to the next.
    cost_potential = -key.square().sum(dim=2)
    for stage in range(stages, -1, -1):
        current = temperature * COOLING**stage
        scale = 2 / current
        scores = StreamingScores(query, key, scale, query.dtype, float(bound_logits(query, key, scale).amax()))
        potentials = iterate(scores.sweep, cost_potential / current, sweeps, None)
        cost_potential = potentials.key * current
    moved = scores.product(potentials, value, by_columns=False)
    return moved if grouped else moved[0]


def _field(samples: Tensor, data: Tensor, temperature: float, sweeps: int, hottest: float) -> Tensor:
    attraction = transport(samples, data, data, temperature, sweeps, hottest)
    return attraction - transport(samples, samples, samples, temperature, sweeps, hottest)


def _moved_to_others(samples: Tensor, temperature: float) -> Tensor:
    if samples.shape[-2] < 2:
        raise ValueError("samples: 1 point; allowed without self-pairs: at least 2")
    # The operator's core knows no mask; no sweep is taken here.
    logits = torch.cdist(samples, samples, compute_mode="donot_use_mm_for_euclid_dist").square() / -temperature
    logits.diagonal(dim1=-2, dim2=-1).fill_(-math.inf)
    return torch.softmax(logits, dim=-1) @ samples


def _check(samples: Tensor, data: Tensor, temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature: {temperature!r}; allowed: a finite number above 0")
    for name, tensor in (("samples", samples), ("data", data)):
        if tensor.ndim not in (2, 3) or 0 in tensor.shape:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)}; allowed: (points, d) or (groups, points, d), not 0")
        if tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name}: dtype {tensor.dtype}; allowed: float32 or float64")
    if data.dtype != samples.dtype or data.shape[:-2] != samples.shape[:-2] or data.shape[-1] != samples.shape[-1]:
        raise ValueError(
            f"data: {data.dtype} of shape {tuple(data.shape)}; allowed: dtype, groups and d of samples, "
            f"{samples.dtype} of shape {tuple(samples.shape)}"
        )
