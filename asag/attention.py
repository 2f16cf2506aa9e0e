"""Adversarial Sinkhorn attention (ASA) as a function of query, key and value; knows tensors only.

Source: "Toward the Frontiers of Reliable Diffusion Sampling via Adversarial Sinkhorn Attention Guidance", Eq. 13,
Algorithm 1 and Table 3. Algorithm 1 prints the transport plan, whose entries sum to 1; an attention map has rows that
sum to 1, so the plan is multiplied by the number of queries here.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from asag.attention_arguments import check_attention_inputs, check_options
from asag.attention_kernels import ATTENTION_KERNELS
from asag.device_scores import DeviceScores, WholeHeads, attention_by_tiles, full_float32
from asag.kernel_choice import KERNELS, named_implementation
from asag.kernel_path import plain
from asag.precision import without_autocast
from asag.sinkhorn import DenseScores, StreamingScores, bound_logits, cpu_tile_bytes, iterate

# An error in a logit is the same error, relative, in the plan. Where |q||k| * eps may exceed these, compute in float64.
# The bound is a worst case: what is measured at it is about a third.
LOGIT_ERROR = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
FLOAT32_EPS = 2.0**-24
# A CPU takes a head's scores whole where they stay in its second-level cache: 512 tokens in float32. With more it was
# measured to be faster in some runs and slower in others.
CPU_HEAD_BYTES = 1 << 20


def adversarial_sinkhorn_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    iterations: int = 2,
    strength: float = 1.0,
    cost: str = "adversarial",
    normalize: str = "rows",
    tolerance: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """Attention whose map is n times the Sinkhorn plan of an adversarial cost (paper: Eq. 13 and Algorithm 1).

    Args:
        query: (batch, heads, n, d), float16, bfloat16, float32 or float64.
        key: (batch, heads, m, d), same dtype and device; m may differ from n.
        value: (batch, heads, m, e).
        iterations: Sinkhorn iterations, each a row and a column update; at least 1 (paper: 2).
        strength: factor on the paper's λ = 1/√d, finite and not negative; 0 is the uniform map.
        cost: "adversarial" (M = QKᵀ), "similarity" (M = 1 - QKᵀ) or "uniform" (the limit λ → 0: the mean of value).
        normalize: "rows" (each query's weights sum to 1 exactly: one more row update after the last iteration) or
            "columns" (Algorithm 1 to the letter, times n).
        tolerance: stop a head early once the mean over keys of |g - g_previous| falls below it; None: never.
        impl: "streaming" (on a CPU no n x m tensor, elsewhere torch's kernels), "dense" (the readable reference),
            "triton" (its kernels, where the card, the package and the tensors allow it, otherwise streaming) or "auto"
            (what the environment variable ASAG_IMPL names, otherwise triton; on a CPU whole heads up to 512 tokens).

    Returns:
        (batch, heads, n, e) in the query's dtype. Against a float64 reference the relative error stays below 2e-5
        (float32), 4e-3 (float16) and 2e-2 (bfloat16), on a CPU also for logits of 1e4. An accelerator computes in
        float32: there float32's error grows with the logits, to 2e-3 for logits of 1e4.

    Raises:
        ValueError: naming the argument, the value and what is allowed.

    For inference: no gradient is recorded.
    """
    check_attention_inputs(query, key, value)
    check_options(iterations, strength, cost, normalize, tolerance, impl)
    impl = named_implementation(impl)
    if cost == "uniform" or strength == 0:
        return value.mean(dim=2, keepdim=True).expand(-1, -1, query.shape[2], -1).to(query.dtype)
    scale = signed_scale(cost, strength, query)
    with torch.no_grad(), without_autocast(query.device.type), full_float32(query.device.type):
        if impl != "dense" and query.device.type != "cpu":
            return _on_device(query, key, value, scale, iterations, tolerance, normalize, impl)
        # A bound read off an accelerator would make the host wait, and it computes in float32 in any case.
        on_cpu = query.device.type == "cpu"
        largest_logit = float(bound_logits(query, key, scale).amax()) if on_cpu else 0.0
        dtype = computation_dtype(query, largest_logit)
        whole = impl == "auto" and WholeHeads.suits(query, key, dtype, iterations, tolerance, CPU_HEAD_BYTES)
        if impl != "dense" and not whole and normalize == "rows" and has_linear_kernel():
            bias = key_bias(query, key, scale, dtype, largest_logit, iterations, tolerance)
            return biased_attention(query, key, value, bias, scale, dtype)
        flat_query, flat_key, flat_value = (tensor.flatten(0, 1) for tensor in (query, key, value))
        if whole:
            # Up to three tiles are there at once, besides the tensors.
            heads = WholeHeads(query, key, scale, dtype, cpu_tile_bytes() // 4)
            out = heads.attention(flat_value, iterations, by_columns=normalize == "columns")
        elif impl == "dense":
            out = _dense(flat_query, flat_key, flat_value, scale, dtype, iterations, tolerance, normalize)
        else:
            scores = StreamingScores(flat_query, flat_key, scale, dtype, largest_logit)
            potentials = iterate(scores.sweep, scores.start(), iterations, tolerance)
            out = scores.product(potentials, flat_value, by_columns=normalize == "columns")
    # In stubs of torch unflatten gives Any.
    by_heads: Tensor = out.to(query.dtype).unflatten(0, query.shape[:2])
    return by_heads


def _on_device(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    iterations: int,
    tolerance: float | None,
    normalize: str,
    impl: str = "streaming",
) -> Tensor:
    """On an accelerator: by the Triton kernels where they suit, else by torch's. The first result of a kind of tensors
    is compared with torch's, for which the host waits; it doesn't again."""
    given = (query, key, value, scale, iterations, tolerance, normalize)
    if impl not in ("auto", "triton") or not KERNELS.suits(query, key, value):
        return _by_torch(*given)
    compiled_in = ("plain", tolerance is not None)
    return KERNELS.run(query, value, compiled_in, lambda kernels: plain(kernels, *given), lambda: _by_torch(*given))


def _by_torch(
    query: Tensor, key: Tensor, value: Tensor, scale: float, iterations: int, tolerance: float | None, normalize: str
) -> Tensor:
    """By torch's attention kernels, or where they don't suit by tiles, which a tolerance needs: it stops heads."""
    if tolerance is None:
        found = ATTENTION_KERNELS.attention(query, key, value, scale, iterations, normalize)
        if found is not None:
            return found
    return attention_by_tiles(query, key, value, scale, iterations, tolerance, normalize)


def attention_rows(
    query: Tensor,
    key: Tensor,
    chosen: Tensor,
    *,
    iterations: int = 2,
    strength: float = 1.0,
    cost: str = "adversarial",
    tolerance: float | None = None,
) -> Tensor:
    """Rows of the attention map that `adversarial_sinkhorn_attention` applies to value, with normalize="rows".

    `chosen` (rows,) holds the numbers of queries, int64 on the query's device; the rest are the arguments there.
    Returns (batch, heads, rows, m) in float32 or float64; no n x m tensor is built.
    """
    if cost == "uniform" or strength == 0:
        return softmax_rows(query[:, :, chosen], key, 0.0)
    scale = signed_scale(cost, strength, query)
    with torch.no_grad(), without_autocast(query.device.type), full_float32(query.device.type):
        if query.device.type == "cpu":
            largest_logit = float(bound_logits(query, key, scale).amax())
            dtype = computation_dtype(query, largest_logit)
            bias = key_bias(query, key, scale, dtype, largest_logit, iterations, tolerance)
        else:
            dtype = torch.promote_types(query.dtype, torch.float32)
            scores = DeviceScores(query, key, scale, dtype)
            scores.iterate(iterations, tolerance)
            bias = scores.columns.unflatten(0, query.shape[:2])
        return softmax_rows(query[:, :, chosen].to(dtype), key, scale, bias)


def softmax_rows(query: Tensor, key: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """``softmax(scale * query keyᵀ + bias)``, the map itself, (batch, heads, n, m), in at least float32: for a few
    queries. The bias is (batch, heads, m)."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.no_grad(), without_autocast(query.device.type), full_float32(query.device.type):
        logits = query.to(dtype) @ key.to(dtype).transpose(-1, -2) * scale
        return torch.softmax(logits if bias is None else logits + bias[:, :, None], dim=-1)


def signed_scale(cost: str, strength: float, query: Tensor) -> float:
    """The factor on ``query keyᵀ`` in the exponent: the paper's λ = 1/√d with the strength and the cost's sign."""
    return (-1.0 if cost == "adversarial" else 1.0) * strength / math.sqrt(query.shape[3])


def key_bias(
    query: Tensor,
    key: Tensor,
    scale: float,
    dtype: torch.dtype,
    largest_logit: float,
    iterations: int,
    tolerance: float | None,
) -> Tensor:
    """On a CPU the key potential after the last sweep, (batch, heads, m), in the dtype of the computation.

    Hosts' heads are strided views; those of several images can't be one list of heads without a copy, so they go
    image by image. The tiles are gone on return, before the final product takes its memory.
    """
    if all(tensor.stride(0) == tensor.shape[1] * tensor.stride(1) for tensor in (query, key)):
        parts = [(query.flatten(0, 1), key.flatten(0, 1))]
    else:
        parts = list(zip(query, key, strict=True))
    potentials = []
    for part_query, part_key in parts:
        scores = StreamingScores(part_query, part_key, scale, dtype, largest_logit)
        potentials.append(iterate(scores.sweep, scores.start(), iterations, tolerance).key)
    by_heads: Tensor = torch.cat(potentials).unflatten(0, query.shape[:2])
    return by_heads


def _dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    dtype: torch.dtype,
    iterations: int,
    tolerance: float | None,
    normalize: str,
) -> Tensor:
    scores = DenseScores(query.to(dtype), key.to(dtype), scale)
    potentials = iterate(scores.sweep, scores.start(), iterations, tolerance)
    rows = scores.row_potential(potentials.previous if normalize == "columns" else potentials.key)
    log_plan = scores.logits + rows[:, :, None] + potentials.key[:, None]
    return torch.exp(log_plan + math.log(query.shape[1])) @ value.to(dtype)


def biased_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float, dtype: torch.dtype
) -> Tensor:
    """On a CPU ``softmax(scale * query keyᵀ + bias) value``, the bias (batch, heads, m) being one number per key.

    The bias goes in as a mask whose rows are one row, repeated with stride 0. The CPU's kernel multiplies before it
    looks for a row's maximum, so a negative scale needs no negated copy.
    """
    mask = bias[:, :, None].expand(-1, -1, query.shape[2], -1)
    out = F.scaled_dot_product_attention(query.to(dtype), key.to(dtype), value.to(dtype), attn_mask=mask, scale=scale)
    return out.to(query.dtype)


def has_linear_kernel() -> bool:
    """Whether the CPU's SDPA with a key bias needs no n x m tensor: since torch 2.3."""
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    return (major, minor) >= (2, 3)


def computation_dtype(query: Tensor, largest_logit: float) -> torch.dtype:
    """float32, or float64 where logits are so large that float32 can't hold them to the accuracy promised."""
    if query.dtype == torch.float64:
        return torch.float64
    if query.device.type != "cpu":
        return torch.float32
    error = largest_logit * FLOAT32_EPS
    return torch.float64 if error > LOGIT_ERROR[query.dtype] else torch.float32
