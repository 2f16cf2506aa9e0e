"""Sinkhorn's potentials and the final attention by two Triton kernels: nothing of size n x m, no copy, no wait.

A half-sweep is the log-sum-exp part of flash attention with one number per key added to the scores:

    out_i = -log n - LSE_j(scale q_i·k_j + bias_j)

For f queries and keys as they are, bias g; for g the two change places, bias f. T iterations and the final product are
2 T + 1 launches in all. Head dimensions are split into a power of two and a rest (40 = 32 + 8, 80 = 64 + 16,
160 = 128 + 32), so that little is padded; strided heads are read where they lie. Logits may have any size: maxima are
subtracted as they come, sums are float32, products of half precision are exact, and those of float32 never TF32.

Needs the package triton; asag.kernel_choice says where these are used. TRITON_INTERPRET=1 runs them on a CPU.
"""

# Triton reads the types of its functions' arguments itself.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import math
import os

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
NOTHING = tl.constexpr(-1.0e38)


@triton.jit  # type: ignore[untyped-decorator]
def _queries(
    Q, rows, row_mask, stride_qn, stride_qd, WIDTH: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr
):  # fmt: skip
    d1 = tl.arange(0, D1)
    q1 = tl.load(Q + rows[:, None] * stride_qn + d1[None, :] * stride_qd, mask=row_mask[:, None], other=0.0)
    q2 = q1
    if D2 > 0:
        d2 = D1 + tl.arange(0, D2)
        inside = row_mask[:, None] & (d2[None, :] < WIDTH)
        q2 = tl.load(Q + rows[:, None] * stride_qn + d2[None, :] * stride_qd, mask=inside, other=0.0)
    return q1, q2


@triton.jit  # type: ignore[untyped-decorator]
def _added(total, weights, values, shrink, PRECISION: tl.constexpr):
    if PRECISION == "interpret":
        total = tl.dot(weights.to(values.dtype).to(tl.float32), values.to(tl.float32), total * shrink[:, None])
    else:
        total = tl.dot(weights.to(values.dtype), values, total * shrink[:, None], input_precision=PRECISION)
    return total


@triton.jit  # type: ignore[untyped-decorator]
def _scores(
    q1, q2, K, key_offsets, stride_kd, key_mask, ROWS: tl.constexpr, WIDTH: tl.constexpr, D1: tl.constexpr,
    D2: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    d1 = tl.arange(0, D1)
    k1 = tl.load(K + key_offsets[None, :] + d1[:, None] * stride_kd, mask=key_mask[None, :], other=0.0)
    if PRECISION == "interpret":  # the interpreter has no bfloat16 products
        q1, q2, k1 = q1.to(tl.float32), q2.to(tl.float32), k1.to(tl.float32)
    scores = tl.dot(q1, k1, input_precision="ieee" if PRECISION == "interpret" else PRECISION)
    if D2 > 0:
        d2 = D1 + tl.arange(0, D2)
        inside = key_mask[None, :] & (d2[:, None] < WIDTH)
        k2 = tl.load(K + key_offsets[None, :] + d2[:, None] * stride_kd, mask=inside, other=0.0)
        if PRECISION == "interpret":
            k2 = k2.to(tl.float32)
        scores = tl.dot(q2, k2, scores, input_precision="ieee" if PRECISION == "interpret" else PRECISION)
    return scores


@triton.jit  # type: ignore[untyped-decorator]
def half_sweep_kernel(
    Q, K, BIAS, OUT, n, m, heads, scale_log2e, log_n,
    stride_qb, stride_qh, stride_qn, stride_qd, stride_kb, stride_kh, stride_km, stride_kd,
    WIDTH: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """OUT[i] = -log n - LSE_j(scale q_i·k_j + BIAS[j]); BIAS (heads, m) and OUT (heads, n) float32, contiguous."""
    head = tl.program_id(1).to(tl.int64)
    batch, part = head // heads, head % heads
    Q += batch * stride_qb + part * stride_qh
    K += batch * stride_kb + part * stride_kh
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < n
    q1, q2 = _queries(Q, rows, row_mask, stride_qn, stride_qd, WIDTH, D1, D2)
    top = tl.full([BLOCK_N], NOTHING, tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, m, BLOCK_M):
        columns = start + tl.arange(0, BLOCK_M)
        mask = columns < m
        scores = _scores(q1, q2, K, columns * stride_km, stride_kd, mask, BLOCK_N, WIDTH, D1, D2, PRECISION)
        scores = scores * scale_log2e
        if HAS_BIAS:
            scores += tl.load(BIAS + head * m + columns, mask=mask, other=0.0)[None, :] * LOG2E
        scores = tl.where(mask[None, :], scores, NOTHING)
        new_top = tl.maximum(top, tl.max(scores, 1))
        total = total * tl.exp2(top - new_top) + tl.sum(tl.exp2(scores - new_top[:, None]), 1)
        top = new_top
    tl.store(OUT + head * n + rows, -log_n - (top + tl.log2(total)) * LN2, mask=row_mask)


@triton.jit  # type: ignore[untyped-decorator]
def biased_attention_kernel(
    Q, K, V, BIAS, OUT, n, m, heads, scale_log2e,
    stride_qb, stride_qh, stride_qn, stride_qd, stride_kb, stride_kh, stride_km, stride_kd,
    stride_vb, stride_vh, stride_vm, stride_vd, stride_ob, stride_oh, stride_on, stride_od,
    WIDTH: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, VALUE_WIDTH: tl.constexpr, E1: tl.constexpr,
    E2: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """OUT = softmax(scale q kᵀ + BIAS) v."""
    head = tl.program_id(1).to(tl.int64)
    batch, part = head // heads, head % heads
    Q += batch * stride_qb + part * stride_qh
    K += batch * stride_kb + part * stride_kh
    V += batch * stride_vb + part * stride_vh
    OUT += batch * stride_ob + part * stride_oh
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < n
    q1, q2 = _queries(Q, rows, row_mask, stride_qn, stride_qd, WIDTH, D1, D2)
    top = tl.full([BLOCK_N], NOTHING, tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    e1 = tl.arange(0, E1)
    sum1 = tl.zeros([BLOCK_N, E1], tl.float32)
    if E2 > 0:
        e2 = E1 + tl.arange(0, E2)
        sum2 = tl.zeros([BLOCK_N, E2], tl.float32)
    for start in range(0, m, BLOCK_M):
        columns = start + tl.arange(0, BLOCK_M)
        mask = columns < m
        scores = _scores(q1, q2, K, columns * stride_km, stride_kd, mask, BLOCK_N, WIDTH, D1, D2, PRECISION)
        bias = tl.load(BIAS + head * m + columns, mask=mask, other=0.0)
        scores = tl.where(mask[None, :], scores * scale_log2e + bias[None, :] * LOG2E, NOTHING)
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weights, 1)
        top = new_top
        v1 = tl.load(V + columns[:, None] * stride_vm + e1[None, :] * stride_vd, mask=mask[:, None], other=0.0)
        sum1 = _added(sum1, weights, v1, shrink, PRECISION)
        if E2 > 0:
            inside = mask[:, None] & (e2[None, :] < VALUE_WIDTH)
            v2 = tl.load(V + columns[:, None] * stride_vm + e2[None, :] * stride_vd, mask=inside, other=0.0)
            sum2 = _added(sum2, weights, v2, shrink, PRECISION)
    out = OUT + rows[:, None] * stride_on
    tl.store(out + e1[None, :] * stride_od, (sum1 / total[:, None]).to(OUT.dtype.element_ty), mask=row_mask[:, None])
    if E2 > 0:
        inside = row_mask[:, None] & (e2[None, :] < VALUE_WIDTH)
        tl.store(out + e2[None, :] * stride_od, (sum2 / total[:, None]).to(OUT.dtype.element_ty), mask=inside)


def split_width(width: int) -> tuple[int, int]:
    """A head dimension as a power of two and the rest, which is padded to one of at least 16 (tl.dot's least)."""
    first = 1 << (width.bit_length() - 1)
    rest = width - first
    return first, max(16, 1 << (rest - 1).bit_length()) if rest else 0


def blocks_of(width: int, itemsize: int) -> dict[str, int]:
    """Rows and columns of a tile, and warps."""
    if itemsize > 2:
        rows, columns = (64, 32) if width <= 128 else (32, 16)
    else:
        rows, columns = (128, 64) if width <= 64 else (64, 64) if width <= 160 else (64, 32)
    return {"BLOCK_N": rows, "BLOCK_M": columns, "num_warps": 4 if width <= 128 else 8}


def precision_of(query: Tensor) -> str:
    """The interpreter has no products of bfloat16. Of half precision there is one kind of product on a device."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1" and query.dtype == torch.bfloat16
    return "interpret" if interpreted else "ieee"


def half_sweep(query: Tensor, key: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """``-log n - LSE_j(scale q kᵀ + bias)``: query (batch, heads, n, d), key (batch, heads, m, d), bias (batch * heads,
    m) float32; returns (batch * heads, n) float32."""
    batch, heads, n, width = query.shape
    m = key.shape[2]
    out = torch.empty(batch * heads, n, device=query.device, dtype=torch.float32)
    first, rest = split_width(width)
    blocks = blocks_of(width, query.element_size())
    half_sweep_kernel[(triton.cdiv(n, blocks["BLOCK_N"]), batch * heads)](
        query, key, out if bias is None else bias, out, n, m, heads, scale * math.log2(math.e), math.log(n),
        *query.stride(), *key.stride(), WIDTH=width, D1=first, D2=rest, HAS_BIAS=bias is not None,
        PRECISION=precision_of(query), **blocks,
    )  # fmt: skip
    return out


def biased_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
    """``softmax(scale q kᵀ + bias) v``, (batch, heads, n, e) in the query's dtype, laid out as hosts join heads."""
    batch, heads, n, width = query.shape
    m, value_width = value.shape[2:]
    out = torch.empty(batch, n, heads, value_width, device=query.device, dtype=query.dtype).transpose(1, 2)
    (first, rest), (value_first, value_rest) = split_width(width), split_width(value_width)
    blocks = blocks_of(max(width, value_width), query.element_size())
    biased_attention_kernel[(triton.cdiv(n, blocks["BLOCK_N"]), batch * heads)](
        query, key, value, bias, out, n, m, heads, scale * math.log2(math.e),
        *query.stride(), *key.stride(), *value.stride(), *out.stride(),
        WIDTH=width, D1=first, D2=rest, VALUE_WIDTH=value_width, E1=value_first, E2=value_rest,
        PRECISION=precision_of(query), **blocks,
    )  # fmt: skip
    return out
