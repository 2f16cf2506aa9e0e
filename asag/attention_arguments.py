"""What the attention operators may be given, and the error that names what isn't allowed."""

from __future__ import annotations

import math

from torch import Tensor

COSTS = ("adversarial", "similarity", "uniform")
NORMALIZATIONS = ("rows", "columns")
IMPLEMENTATIONS = ("auto", "dense", "streaming", "triton")


def check_attention_inputs(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raise ValueError unless the tensors have the layout of scaled_dot_product_attention and fit each other."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.ndim != 4:
            raise ValueError(
                f"{name}: shape {tuple(tensor.shape)}; allowed: 4 dimensions (batch, heads, tokens, head_dim)"
            )
        if not tensor.is_floating_point():
            raise ValueError(f"{name}: dtype {tensor.dtype}; allowed: a floating-point dtype")
        if 0 in tensor.shape:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)}; allowed: at least one of each dimension")
        if tensor.dtype != query.dtype or tensor.device != query.device:
            raise ValueError(
                f"{name}: {tensor.dtype} on {tensor.device}; allowed: the query's, {query.dtype} on {query.device}"
            )
    if key.shape[:2] != query.shape[:2]:
        raise ValueError(
            f"key: batch and heads {tuple(key.shape[:2])}; allowed: those of query, {tuple(query.shape[:2])}"
        )
    if key.shape[3] != query.shape[3]:
        raise ValueError(f"key: head_dim {key.shape[3]}; allowed: that of query, {query.shape[3]}")
    if value.shape[:3] != key.shape[:3]:
        raise ValueError(
            f"value: batch, heads and tokens {tuple(value.shape[:3])}; allowed: those of key, {tuple(key.shape[:3])}"
        )


def check_options(
    iterations: int, strength: float, cost: str, normalize: str, tolerance: float | None, impl: str
) -> None:
    """Raise ValueError naming the option, its value and what is allowed."""
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations: {iterations!r}; allowed: an integer of at least 1")
    if not _is_finite_number(strength) or strength < 0:
        raise ValueError(f"strength: {strength!r}; allowed: a finite number of at least 0")
    if tolerance is not None and (not _is_finite_number(tolerance) or tolerance < 0):
        raise ValueError(f"tolerance: {tolerance!r}; allowed: None or a finite number of at least 0")
    for name, given, allowed in (
        ("cost", cost, COSTS),
        ("normalize", normalize, NORMALIZATIONS),
        ("impl", impl, IMPLEMENTATIONS),
    ):
        if given not in allowed:
            raise ValueError(f"{name}: {given!r}; allowed: {', '.join(allowed)}")


def _is_finite_number(given: object) -> bool:
    return isinstance(given, (int, float)) and not isinstance(given, bool) and math.isfinite(given)
