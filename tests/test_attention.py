"""The public function: accuracy against a float64 dense reference, memory, closed forms, errors."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import asag.attention
from asag.attention import (
    LOGIT_ERROR,
    adversarial_sinkhorn_attention,
    attention_rows,
    computation_dtype,
    has_linear_kernel,
    softmax_rows,
)

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def make(n, m, d, largest=5.0, dtype=torch.float32, heads=2, seed=0, strength=1.0):
    """Queries, keys and values whose largest |logit| is about `largest` at this strength."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(1, heads, count, d, generator=generator) for count in (n, m, m))
    present = (query @ key.transpose(-1, -2)).abs().max() * strength / math.sqrt(d)
    gain = math.sqrt(largest / float(present))
    return (query * gain).to(dtype), (key * gain).to(dtype), value.to(dtype)


def error(out, query, key, value, **options):
    reference = adversarial_sinkhorn_attention(query.double(), key.double(), value.double(), impl="dense", **options)
    return float((out.double() - reference).norm() / reference.norm())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("normalize", ["rows", "columns"])
@pytest.mark.parametrize("largest", [5.0, 60.0, 1e3, 1e4])
@pytest.mark.parametrize(
    ("n", "m", "d"), [(1, 1, 8), (1, 77, 40), (7, 7, 64), (64, 141, 72), (256, 256, 128), (333, 50, 160)]
)
def test_accuracy(n, m, d, largest, normalize, dtype):
    for strength, iterations in ((1.0, 2), (0.3, 1), (3.0, 10)):
        query, key, value = make(n, m, d, largest, dtype, strength=strength)
        options = {"iterations": iterations, "strength": strength, "normalize": normalize}
        out = adversarial_sinkhorn_attention(query, key, value, **options)
        assert out.dtype == dtype
        assert out.shape == query.shape
        assert error(out, query, key, value, **options) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_accuracy_at_4096_tokens(dtype):
    query, key, value = make(4096, 4096, 40, 30.0, dtype, heads=1)
    assert error(adversarial_sinkhorn_attention(query, key, value), query, key, value) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_accuracy_in_a_torch_before_2_3(monkeypatch, dtype):
    """Without SDPA's kernel for a bias of keys."""
    monkeypatch.setattr(asag.attention, "has_linear_kernel", lambda: False)
    kernel = watch(monkeypatch, "biased_attention")
    query, key, value = make(333, 50, 40, 60.0, dtype)
    out = adversarial_sinkhorn_attention(query, key, value, impl="streaming")
    assert kernel == []
    assert error(out, query, key, value) < TOLERANCE[dtype]


@pytest.mark.parametrize("normalize", ["rows", "columns"])
def test_non_contiguous_inputs(normalize):
    packed = torch.randn(2, 100, 3, 4, 40, generator=torch.Generator().manual_seed(3))
    query, key, value = packed.permute(2, 0, 3, 1, 4)
    assert not query.is_contiguous()
    out = adversarial_sinkhorn_attention(query, key, value, normalize=normalize)
    again = adversarial_sinkhorn_attention(*(t.contiguous() for t in (query, key, value)), normalize=normalize)
    torch.testing.assert_close(out, again)
    assert error(out, query, key, value, normalize=normalize) < 2e-5


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 40),
    m=st.integers(1, 40),
    d=st.sampled_from([1, 3, 8, 40]),
    largest=st.floats(0.1, 1e4),
    strength=st.floats(0.3, 3),
    iterations=st.integers(1, 10),
    cost=st.sampled_from(["adversarial", "similarity", "uniform"]),
    normalize=st.sampled_from(["rows", "columns"]),
    seed=st.integers(0, 99),
)
def test_streaming_is_dense_for_any_options(n, m, d, largest, strength, iterations, cost, normalize, seed):
    query, key, value = make(n, m, d, largest, seed=seed, strength=strength)
    options = {"iterations": iterations, "strength": strength, "cost": cost, "normalize": normalize}
    assert error(adversarial_sinkhorn_attention(query, key, value, **options), query, key, value, **options) < 2e-5


MEMORY_SCRIPT = """
import resource, torch
from asag.attention import adversarial_sinkhorn_attention
torch.set_num_threads(1)
query, key, value = (torch.randn(1, 8, {n}, 40) for _ in range(3))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
adversarial_sinkhorn_attention(query, key, value, iterations=1)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_memory_at_16384_tokens_stays_under_700_mib():
    """One iteration: what a second one uses is the same buffers."""
    script = MEMORY_SCRIPT.format(n=16384)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=580)
    assert float(done.stdout) < 700


def test_rows_mode_without_bias_is_softmax_of_negated_logits_rescaled_by_columns():
    """After one iteration the plan's columns sum to 1 (times n) in columns mode; in rows mode its rows do."""
    query, key, _ = make(50, 50, 16)
    identity = torch.eye(50).expand(1, 2, 50, 50)
    for normalize, axis in (("rows", -1), ("columns", -2)):
        plan = adversarial_sinkhorn_attention(query, key, identity, normalize=normalize)
        torch.testing.assert_close(plan.sum(axis), torch.ones(1, 2, 50), rtol=1e-4, atol=1e-5)
        assert (plan.sum(-1 if axis == -2 else -2) - 1).abs().max() > 1e-4


def test_doubly_stochastic_when_converged():
    query, key, _ = make(50, 50, 16, 3.0)
    identity = torch.eye(50).expand(1, 2, 50, 50)
    for normalize in ("rows", "columns"):
        plan = adversarial_sinkhorn_attention(query, key, identity, iterations=50, normalize=normalize)
        torch.testing.assert_close(plan.sum(-1), torch.ones(1, 2, 50), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(plan.sum(-2), torch.ones(1, 2, 50), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"cost": "uniform"}, {"strength": 0.0}, {"strength": 1e-7}])
def test_uniform_limit_is_the_mean_value(options):
    query, key, value = make(30, 20, 8)
    out = adversarial_sinkhorn_attention(query, key, value, **options)
    torch.testing.assert_close(out, value.mean(2, keepdim=True).expand_as(out), rtol=1e-5, atol=1e-6)


def test_one_key_gives_its_value():
    query, key, value = make(9, 1, 8)
    torch.testing.assert_close(adversarial_sinkhorn_attention(query, key, value), value.expand(1, 2, 9, 8))


def test_equivariant_to_permutations():
    query, key, value = make(40, 40, 8)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    out = adversarial_sinkhorn_attention(query, key, value)
    moved = adversarial_sinkhorn_attention(query[:, :, order], key[:, :, order], value[:, :, order])
    torch.testing.assert_close(moved, out[:, :, order], rtol=1e-4, atol=1e-5)


def test_similarity_is_adversarial_with_negated_queries():
    query, key, value = make(20, 30, 8)
    similar = adversarial_sinkhorn_attention(query, key, value, cost="similarity")
    torch.testing.assert_close(similar, adversarial_sinkhorn_attention(-query, key, value))
    assert (similar - adversarial_sinkhorn_attention(query, key, value)).abs().max() > 0.1


def test_heads_and_batches_do_not_mix():
    query, key, value = make(25, 25, 8, heads=4)
    whole = adversarial_sinkhorn_attention(query, key, value, iterations=3, tolerance=1e-3)
    for head in range(4):
        one = (t[:, head : head + 1] for t in (query, key, value))
        alone = adversarial_sinkhorn_attention(*one, iterations=3, tolerance=1e-3)
        torch.testing.assert_close(whole[:, head : head + 1], alone)


def test_autocast_does_not_reach_the_potentials():
    query, key, value = make(64, 64, 40, 30.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = adversarial_sinkhorn_attention(query, key, value)
    assert error(out, query, key, value) < 2e-5


def watch(monkeypatch, name):
    """What a function or class of asag.attention is called with, as a list that fills; it does what it did."""
    calls, original = [], getattr(asag.attention, name)

    def watched(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(asag.attention, name, watched)
    return calls


@pytest.mark.parametrize("normalize", ["rows", "columns"])
@pytest.mark.parametrize("impl", ["auto", "streaming", "dense"])
def test_the_square_is_built_where_it_is_asked_for_or_small_and_rows_take_the_kernel(monkeypatch, impl, normalize):
    dense, streaming, kernel = (watch(monkeypatch, name) for name in ("_dense", "StreamingScores", "biased_attention"))
    for tokens in (30, 1025):
        adversarial_sinkhorn_attention(*make(1024, tokens, 8, heads=1), impl=impl, normalize=normalize)
        streams = impl == "streaming" or (impl == "auto" and tokens == 1025)
        assert (len(dense), len(streaming)) == (impl == "dense", streams)
        assert len(kernel) == (streams and normalize == "rows" and has_linear_kernel())
        for calls in (dense, streaming, kernel):
            calls.clear()


@pytest.mark.skipif(not has_linear_kernel(), reason="before torch 2.3 the heads of all images are one list")
def test_heads_of_hosts_are_views_that_are_not_copied(monkeypatch):
    """Heads in one list where strides allow, image by image where they don't."""
    made = watch(monkeypatch, "StreamingScores")
    packed = torch.randn(2, 30, 3, 4, 8, generator=torch.Generator().manual_seed(3))
    query, key, value = packed.permute(2, 0, 3, 1, 4)
    adversarial_sinkhorn_attention(query, key, value, impl="streaming")
    assert [scores[0].shape for scores in made] == [(4, 30, 8)] * 2
    assert {part.untyped_storage().data_ptr() for scores in made for part in scores[:2]} == {packed.data_ptr()}
    made.clear()
    adversarial_sinkhorn_attention(*(tensor.contiguous() for tensor in (query, key, value)), impl="streaming")
    assert [scores[0].shape for scores in made] == [(8, 30, 8)]
    made.clear()
    adversarial_sinkhorn_attention(query.contiguous(), key, value, impl="streaming")
    assert [scores[0].shape for scores in made] == [(4, 30, 8)] * 2


def test_no_gradient_is_recorded_and_autocast_reaches_no_map():
    query, key, value = make(64, 64, 40, 30.0)
    chosen, scale = torch.tensor([0, 5, 63]), 1 / math.sqrt(40)
    expected = softmax_rows(query[:, :, chosen].double(), key.double(), scale)
    for tensor in (query, key, value):
        tensor.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = softmax_rows(query[:, :, chosen], key, scale)
        weakened = attention_rows(query, key, chosen)
        out = adversarial_sinkhorn_attention(query, key, value)
    assert not any(each.requires_grad for each in (rows, weakened, out))
    torch.testing.assert_close(rows.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(weakened @ value, out[:, :, chosen], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", LOGIT_ERROR)
def test_where_logits_are_too_large_for_float32_the_computation_is_in_float64(dtype):
    """float32's unit roundoff is 2^-24: a logit of that size is known to within size times it."""
    largest = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype] * 2**24
    query = torch.zeros(1, 1, 1, 1, dtype=dtype)
    assert computation_dtype(query, 0.99 * largest) == torch.float32
    assert computation_dtype(query, 1.01 * largest) == torch.float64
    assert computation_dtype(query.double(), 0.0) == torch.float64
    assert computation_dtype(query.to("meta"), 1.01 * largest) == torch.float32  # MPS, say, which has no float64


BAD = [
    ({"query": torch.zeros(2, 3, 4)}, "query: shape .*allowed: 4 dimensions"),
    ({"key": torch.zeros(1, 3, 5, 8)}, "key: batch and heads .*allowed"),
    ({"key": torch.zeros(1, 2, 5, 9)}, "key: head_dim 9; allowed: that of query, 8"),
    ({"key": torch.zeros(1, 2, 0, 8)}, "key: shape .*at least one"),
    ({"value": torch.zeros(1, 2, 6, 8)}, "value: .*allowed: those of key"),
    ({"value": torch.zeros(1, 2, 5, 8, dtype=torch.float16)}, "value: torch.float16 on cpu; allowed: the query's"),
    ({"value": torch.zeros(1, 2, 5)}, "value: shape .*allowed: 4 dimensions"),
    ({"key": torch.zeros(1, 2, 5, 8, device="meta")}, "key: torch.float32 on meta; allowed: the query's"),
    ({"key": torch.zeros(2, 2, 5, 8)}, "key: batch and heads .*allowed"),
    ({"value": torch.zeros(1, 3, 5, 8)}, "value: .*allowed: those of key"),
    ({"strength": True}, "strength: True; allowed: a finite number"),
    ({"strength": "1"}, "strength: '1'; allowed: a finite number"),
    ({"strength": math.inf}, "strength: inf; allowed: a finite number"),
    ({"tolerance": -0.1}, "tolerance: -0.1; allowed"),
    ({"query": torch.zeros(1, 2, 5, 8, dtype=torch.int64)}, "query: dtype .*floating"),
    ({"iterations": 0}, "iterations: 0; allowed: an integer of at least 1"),
    ({"iterations": 1.5}, "iterations: 1.5; allowed"),
    ({"iterations": True}, "iterations: True; allowed"),
    ({"strength": math.nan}, "strength: nan; allowed: a finite number"),
    ({"strength": -1}, "strength: -1; allowed"),
    ({"tolerance": math.inf}, "tolerance: inf; allowed"),
    ({"cost": "cheap"}, "cost: 'cheap'; allowed: adversarial, similarity, uniform"),
    ({"normalize": "both"}, "normalize: 'both'; allowed: rows, columns"),
    ({"impl": "fast"}, "impl: 'fast'; allowed: auto, dense, streaming"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input_names_argument_value_and_what_is_allowed(change, message):
    arguments = {name: torch.zeros(1, 2, 5, 8) for name in ("query", "key", "value")} | change
    with pytest.raises(ValueError, match=f"^{message}"):
        adversarial_sinkhorn_attention(**arguments)


def test_the_smallest_allowed_is_allowed():
    query, key, value = make(5, 5, 8)
    adversarial_sinkhorn_attention(query, key, value, iterations=1, strength=0, tolerance=0)
    adversarial_sinkhorn_attention(query, key, value[..., :3], iterations=1, strength=1, tolerance=0.0)


@pytest.mark.parametrize(
    ("version", "linear"), [("2.1.2", False), ("2.2.0+cu121", False), ("2.3.0", True), ("2.10.1", True)]
)
def test_torch_has_that_kernel_since_2_3(monkeypatch, version, linear):
    monkeypatch.setattr(torch, "__version__", version)
    assert has_linear_kernel() == linear
