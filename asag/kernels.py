"""Sinkhorn's potentials and the final attention by three Triton kernels: nothing of size n x m, no copy, no wait.

A half-sweep is the log-sum-exp part of flash attention with one number per key added to the scores:

    out_i = -log n - LSE_j(scale q_i·k_j + bias_j)

For f queries and keys as they are, bias g; for g the two change places, bias f. T iterations and the final product are
2 T + 1 launches in all, in joint attention, too. Head dimensions are split into a power of two and a rest (40 = 32 + 8,
80 = 64 + 16, 160 = 128 + 32), so that little is padded; on Hopper they are padded to one power of two, see
asag.kernel_launch. Strided heads are read where they lie. Logits may have any
size: maxima are subtracted as they come, sums are float32, products of half precision are exact, and those of float32
never TF32.

WIDENED computes products of half precision in float32, for the interpreter, which has none of bfloat16. Triton from 2.1
on, which A1111 brings, is kept to: its tl.dot adds to nothing, and tl.math has the powers of two.

Needs the package triton; asag.kernel_launch starts these, and asag.kernel_choice says where they are used.
TRITON_INTERPRET=1 runs them on a CPU.
"""

# Triton reads the types of its functions' arguments itself.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
NOTHING = tl.constexpr(-1.0e38)


@triton.jit  # type: ignore[untyped-decorator]
def _in_head(tokens, columns, WIDTH: tl.constexpr, END: tl.constexpr):
    """Which of a tile's numbers there are: those of the `tokens` in a head's first WIDTH of END columns."""
    return tokens & (columns < WIDTH) if END > WIDTH else tokens


@triton.jit  # type: ignore[untyped-decorator]
def _queries(
    Q, rows, row_mask, stride_qn, stride_qd, WIDTH: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr
):  # fmt: skip
    d1 = tl.arange(0, D1)
    inside = _in_head(row_mask[:, None], d1[None, :], WIDTH, D1)
    q1 = tl.load(Q + rows[:, None] * stride_qn + d1[None, :] * stride_qd, mask=inside, other=0.0)
    q2 = q1
    if D2 > 0:
        d2 = D1 + tl.arange(0, D2)
        inside = row_mask[:, None] & (d2[None, :] < WIDTH)
        q2 = tl.load(Q + rows[:, None] * stride_qn + d2[None, :] * stride_qd, mask=inside, other=0.0)
    return q1, q2


@triton.jit  # type: ignore[untyped-decorator]
def _scores(
    q1, q2, K, key_offsets, stride_kd, key_mask, WIDTH: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    WIDENED: tl.constexpr,
):  # fmt: skip
    """q·k of a tile of keys, float32, not scaled."""
    d1 = tl.arange(0, D1)
    inside = _in_head(key_mask[None, :], d1[:, None], WIDTH, D1)
    k1 = tl.load(K + key_offsets[None, :] + d1[:, None] * stride_kd, mask=inside, other=0.0)
    if WIDENED:
        q1, q2, k1 = q1.to(tl.float32), q2.to(tl.float32), k1.to(tl.float32)
    scores = tl.dot(q1, k1, allow_tf32=False)
    if D2 > 0:
        d2 = D1 + tl.arange(0, D2)
        inside = key_mask[None, :] & (d2[:, None] < WIDTH)
        k2 = tl.load(K + key_offsets[None, :] + d2[:, None] * stride_kd, mask=inside, other=0.0)
        if WIDENED:
            k2 = k2.to(tl.float32)
        scores += tl.dot(q2, k2, allow_tf32=False)
    return scores


@triton.jit
def _summed(scores, top, total):
    """One more tile of a log-sum-exp: its sum is ``total 2^top``. A tile's own maximum first: Triton 2.1 fails at what
    compares it with that of others before."""
    highest = tl.max(scores, 1)
    added = tl.sum(tl.math.exp2(scores - highest[:, None]), 1)
    new_top = tl.maximum(top, highest)
    return new_top, total * tl.math.exp2(top - new_top) + added * tl.math.exp2(highest - new_top)


@triton.jit  # type: ignore[untyped-decorator]
def _added(total, weights, values, shrink, WIDENED: tl.constexpr):
    weights = weights.to(values.dtype)
    if WIDENED:
        weights, values = weights.to(tl.float32), values.to(tl.float32)
    return total * shrink[:, None] + tl.dot(weights, values, allow_tf32=False)


@triton.jit  # type: ignore[untyped-decorator]
def _nothing(row_mask, BLOCK_N: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr):
    """Maxima and sums of attention to no keys. Triton 2.1 wants an argument that isn't compiled in: the mask."""
    total = tl.zeros([BLOCK_N], tl.float32)
    top = tl.where(row_mask, NOTHING, total)
    return top, total, tl.zeros([BLOCK_N, E1], tl.float32), tl.zeros([BLOCK_N, E2 if E2 > 0 else 1], tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _attended(
    scores, V, value_offsets, stride_vd, key_mask, top, total, sum1, sum2, WIDTH: tl.constexpr, E1: tl.constexpr,
    E2: tl.constexpr, WIDENED: tl.constexpr,
):  # fmt: skip
    """One more tile of attention, of which the sums are kept as in `_summed`."""
    new_top = tl.maximum(top, tl.max(scores, 1))
    weights = tl.math.exp2(scores - new_top[:, None])
    shrink = tl.math.exp2(top - new_top)
    e1 = tl.arange(0, E1)
    inside = _in_head(key_mask[:, None], e1[None, :], WIDTH, E1)
    v1 = tl.load(V + value_offsets[:, None] + e1[None, :] * stride_vd, mask=inside, other=0.0)
    sum1 = _added(sum1, weights, v1, shrink, WIDENED)
    if E2 > 0:
        e2 = E1 + tl.arange(0, E2)
        inside = key_mask[:, None] & (e2[None, :] < WIDTH)
        v2 = tl.load(V + value_offsets[:, None] + e2[None, :] * stride_vd, mask=inside, other=0.0)
        sum2 = _added(sum2, weights, v2, shrink, WIDENED)
    return new_top, total * shrink + tl.sum(weights, 1), sum1, sum2


@triton.jit  # type: ignore[untyped-decorator]
def _stored(
    OUT, rows, row_mask, stride_on, stride_od, total, sum1, sum2, WIDTH: tl.constexpr, E1: tl.constexpr,
    E2: tl.constexpr,
):  # fmt: skip
    out = OUT + rows[:, None] * stride_on
    e1 = tl.arange(0, E1)
    inside = _in_head(row_mask[:, None], e1[None, :], WIDTH, E1)
    tl.store(out + e1[None, :] * stride_od, (sum1 / total[:, None]).to(OUT.dtype.element_ty), mask=inside)
    if E2 > 0:
        e2 = E1 + tl.arange(0, E2)
        inside = row_mask[:, None] & (e2[None, :] < WIDTH)
        tl.store(out + e2[None, :] * stride_od, (sum2 / total[:, None]).to(OUT.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def half_sweep_kernel(
    Q, K, BIAS, MOVING, OUT, n, m, heads, scale_log2e, log_n,
    stride_qb, stride_qh, stride_qn, stride_qd, stride_kb, stride_kh, stride_km, stride_kd,
    WIDTH: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_MOVING: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, WIDENED: tl.constexpr,
):  # fmt: skip
    """OUT[i] = -log n - LSE_j(scale q_i·k_j + BIAS[j]); BIAS (heads, m) and OUT (heads, n) float32, contiguous. Heads
    whose MOVING (heads) is 0 keep what OUT has."""
    head = tl.program_id(1).to(tl.int64)
    if HAS_MOVING:  # noqa: SIM102 (this one is decided when the kernel is compiled, the other when it runs)
        if tl.load(MOVING + head).to(tl.int32) == 0:
            return
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
        scores = _scores(q1, q2, K, columns * stride_km, stride_kd, mask, WIDTH, D1, D2, WIDENED) * scale_log2e
        if HAS_BIAS:
            scores += tl.load(BIAS + head * m + columns, mask=mask, other=0.0)[None, :] * LOG2E
        top, total = _summed(tl.where(mask[None, :], scores, NOTHING), top, total)
    tl.store(OUT + head * n + rows, -log_n - (top + tl.math.log2(total)) * LN2, mask=row_mask)


@triton.jit  # type: ignore[untyped-decorator]
def biased_attention_kernel(
    Q, K, V, BIAS, OUT, n, m, heads, scale_log2e,
    stride_qb, stride_qh, stride_qn, stride_qd, stride_kb, stride_kh, stride_km, stride_kd,
    stride_vb, stride_vh, stride_vm, stride_vd, stride_ob, stride_oh, stride_on, stride_od,
    WIDTH: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, VALUE_WIDTH: tl.constexpr, E1: tl.constexpr,
    E2: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, WIDENED: tl.constexpr,
):  # fmt: skip
    """OUT = softmax(scale q kᵀ + BIAS) v."""
    head = tl.program_id(1).to(tl.int64)
    batch, part = head // heads, head % heads
    K += batch * stride_kb + part * stride_kh
    V += batch * stride_vb + part * stride_vh
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < n
    Q += batch * stride_qb + part * stride_qh
    q1, q2 = _queries(Q, rows, row_mask, stride_qn, stride_qd, WIDTH, D1, D2)
    top, total, sum1, sum2 = _nothing(row_mask, BLOCK_N, E1, E2)
    for start in range(0, m, BLOCK_M):
        columns = start + tl.arange(0, BLOCK_M)
        mask = columns < m
        scores = _scores(q1, q2, K, columns * stride_km, stride_kd, mask, WIDTH, D1, D2, WIDENED)
        bias = tl.load(BIAS + head * m + columns, mask=mask, other=0.0)
        scores = tl.where(mask[None, :], scores * scale_log2e + bias[None, :] * LOG2E, NOTHING)
        top, total, sum1, sum2 = _attended(
            scores, V, columns * stride_vm, stride_vd, mask, top, total, sum1, sum2, VALUE_WIDTH, E1, E2, WIDENED
        )
    OUT += batch * stride_ob + part * stride_oh
    _stored(OUT, rows, row_mask, stride_on, stride_od, total, sum1, sum2, VALUE_WIDTH, E1, E2)


@triton.jit  # type: ignore[untyped-decorator]
def joint_attention_kernel(
    Q, K, V, BIAS, MASK, OUT, n, m, heads, before, text, scale_log2e, softmax_log2e,
    stride_qb, stride_qh, stride_qn, stride_qd, stride_kb, stride_kh, stride_km, stride_kd,
    stride_vb, stride_vh, stride_vm, stride_vd, stride_ob, stride_oh, stride_on, stride_od,
    stride_mb, stride_mh, stride_mn, stride_mt,
    WIDTH: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, VALUE_WIDTH: tl.constexpr, E1: tl.constexpr,
    E2: tl.constexpr, HAS_MASK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, WIDENED: tl.constexpr,
):  # fmt: skip
    """Image queries Q attend to keys of which those from `before` to `before + m` are the image's, the others `text`.

    With S = softmax(scale q kᵀ + BIAS) v over image keys and L their ordinary log-sum-exp, OUT is ordinary attention
    over the text keys and one more key, whose logit is L and whose value is S. So what the image is given as a whole
    is what SoftMax gives it. MASK (…, n, text) is added to the text keys' logits.
    """
    head = tl.program_id(1).to(tl.int64)
    batch, part = head // heads, head % heads
    K += batch * stride_kb + part * stride_kh
    V += batch * stride_vb + part * stride_vh
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < n
    Q += batch * stride_qb + part * stride_qh
    q1, q2 = _queries(Q, rows, row_mask, stride_qn, stride_qd, WIDTH, D1, D2)
    top, total, sum1, sum2 = _nothing(row_mask, BLOCK_N, E1, E2)
    image_top, image_total = top, total
    for start in range(0, m, BLOCK_M):
        columns = start + tl.arange(0, BLOCK_M)
        mask = columns < m
        keys = before + columns
        scores = _scores(q1, q2, K, keys * stride_km, stride_kd, mask, WIDTH, D1, D2, WIDENED)
        logits = tl.where(mask[None, :], scores * softmax_log2e, NOTHING)
        image_top, image_total = _summed(logits, image_top, image_total)
        bias = tl.load(BIAS + head * m + columns, mask=mask, other=0.0)
        scores = tl.where(mask[None, :], scores * scale_log2e + bias[None, :] * LOG2E, NOTHING)
        top, total, sum1, sum2 = _attended(
            scores, V, keys * stride_vm, stride_vd, mask, top, total, sum1, sum2, VALUE_WIDTH, E1, E2, WIDENED
        )
    sum1 *= (image_total / total)[:, None]
    sum2 *= (image_total / total)[:, None]
    MASK += batch * stride_mb + part * stride_mh
    for start in range(0, text, BLOCK_M):
        columns = start + tl.arange(0, BLOCK_M)
        mask = columns < text
        keys = tl.where(columns < before, columns, columns + m)
        scores = _scores(q1, q2, K, keys * stride_km, stride_kd, mask, WIDTH, D1, D2, WIDENED) * softmax_log2e
        if HAS_MASK:
            inside = row_mask[:, None] & mask[None, :]
            hidden = tl.load(MASK + rows[:, None] * stride_mn + columns[None, :] * stride_mt, mask=inside, other=0.0)
            scores += hidden.to(tl.float32) * LOG2E
        scores = tl.where(mask[None, :], scores, NOTHING)
        image_top, image_total, sum1, sum2 = _attended(
            scores, V, keys * stride_vm, stride_vd, mask, image_top, image_total, sum1, sum2, VALUE_WIDTH, E1, E2,
            WIDENED,
        )  # fmt: skip
    OUT += batch * stride_ob + part * stride_oh
    _stored(OUT, rows, row_mask, stride_on, stride_od, image_total, sum1, sum2, VALUE_WIDTH, E1, E2)
