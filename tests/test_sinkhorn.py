"""Plans and potentials against POT, which nobody here wrote, and against answers known in closed form."""

import math

import numpy as np
import ot
import pytest
import torch

from asag.sinkhorn import (
    CPU_TILE_BYTES_PER_THREAD,
    LARGEST_SCALED_LOGIT,
    DenseScores,
    StreamingScores,
    bound_logits,
    iterate,
)


def tokens(n: int, m: int, d: int = 8, heads: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(heads, count, d, generator=generator, dtype=torch.float64) for count in (n, m))


def plan(scores: DenseScores, iterations: int, tolerance: float | None = None) -> torch.Tensor:
    potentials = iterate(scores.sweep, scores.start(), iterations, tolerance)
    rows = scores.row_potential(potentials.key)
    return torch.exp(scores.logits + rows[:, :, None] + potentials.key[:, None])


@pytest.mark.parametrize(("n", "m"), [(12, 12), (7, 19), (30, 4), (1, 5)])
def test_converged_plan_is_pots(n, m):
    query, key = tokens(n, m)
    ours = plan(DenseScores(query, key, -0.5), 3000)
    for head in range(2):
        cost = (query[head] @ key[head].T).numpy()
        theirs = ot.bregman.sinkhorn_log(np.full(n, 1 / n), np.full(m, 1 / m), cost, reg=2.0, stopThr=1e-14)
        np.testing.assert_allclose(ours[head].numpy(), theirs, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_unconverged_potentials_are_pots_scaling_iterations(iterations):
    """POT's plain Sinkhorn scales columns, then rows; ours rows, then columns: the same on the transposed problem."""
    query, key = tokens(9, 6, heads=1)
    scores = DenseScores(query, key, -0.7)
    potentials = iterate(scores.sweep, scores.start(), iterations, None)
    rows = scores.row_potential(potentials.previous)
    ours = torch.exp(scores.logits + rows[:, :, None] + potentials.key[:, None])[0]
    cost = (query[0] @ key[0].T * 0.7).numpy()
    with pytest.warns(UserWarning, match="did not converge"):
        theirs = ot.bregman.sinkhorn_knopp(
            np.full(6, 1 / 6), np.full(9, 1 / 9), cost.T, reg=1.0, numItermax=iterations, stopThr=0
        )
    # sinkhorn_knopp starts from u = 1/6, v = 1/9, a constant that cancels, and updates v (our rows) first.
    np.testing.assert_allclose(ours.numpy(), theirs.T, rtol=1e-10)


def test_marginals_are_uniform_when_converged_and_rows_always():
    query, key = tokens(20, 15)
    unconverged, converged = (plan(DenseScores(query, key, -1.0), count) for count in (1, 2000))
    torch.testing.assert_close(unconverged.sum(2), torch.full((2, 20), 1 / 20, dtype=torch.float64))
    assert (unconverged.sum(1) - 1 / 15).abs().max() > 1e-3
    torch.testing.assert_close(converged.sum(1), torch.full((2, 15), 1 / 15, dtype=torch.float64), rtol=1e-6, atol=0)


def test_first_row_update_is_softmax():
    query, key = tokens(10, 10)
    scores = DenseScores(query, key, -0.35)
    rows = scores.row_potential(scores.start())
    first = torch.exp(scores.logits + rows[:, :, None]) * 10
    torch.testing.assert_close(first, torch.softmax(-0.35 * query @ key.transpose(1, 2), dim=-1))


def test_constant_logits_give_potentials_of_zero_change():
    scores = DenseScores(torch.zeros(1, 4, 2), torch.zeros(1, 6, 2), -1.0)
    torch.testing.assert_close(torch.exp(scores.sweep(scores.start())), torch.full((1, 6), 4 / 4.0))


@pytest.mark.parametrize("scale", [-0.2, -3.0, -80.0, 0.5])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 9), (300, 1100), (1500, 700)])
def test_streaming_sweep_is_the_dense_sweep(n, m, scale):
    query, key = tokens(n, m, heads=3)
    dense, streaming = DenseScores(query, key, scale), StreamingScores(query, key, scale, torch.float64)
    start = torch.randn(3, m, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(streaming.sweep(start), dense.sweep(start), rtol=1e-9, atol=1e-9)


def test_streaming_uses_several_tiles_and_groups_of_heads():
    many_rows = StreamingScores(*tokens(600, 4096), -1.0, torch.float32)
    assert many_rows.tile_heads == 1
    assert many_rows.tile_rows * 4096 * 4 <= CPU_TILE_BYTES_PER_THREAD * torch.get_num_threads()
    many_heads = StreamingScores(*tokens(16, 16, heads=40), -1.0, torch.float32)
    assert many_heads.tile_heads == 40


@pytest.mark.parametrize(
    ("n", "m", "heads", "tile_heads", "tile_rows"),
    [(3, 200_000, 2, 1, 1), (3, 400_000, 1, 1, 1), (128, 1024, 5, 2, 128), (300, 1024, 5, 1, 256), (1, 1, 1, 1, 1)],
)
def test_tiles_hold_as_much_as_a_thread_caches(monkeypatch, n, m, heads, tile_heads, tile_rows):
    """2^18 numbers of float32: whole heads as long as one fits, else rows; one row where a row alone is longer."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    query, key = torch.zeros(heads, n, 2), torch.zeros(heads, m, 2)
    scores = StreamingScores(query, key, 1.0, torch.float32, 0.0)
    assert (scores.tile_heads, scores.tile_rows) == (tile_heads, tile_rows)
    assert scores.one_tile == ((tile_heads, tile_rows) == (heads, n))
    tiles = [(group, rows) for group, _, slices in scores.tiles() for rows in slices]
    covered = torch.zeros(heads, n)
    for group, rows in tiles:
        covered[group, rows] += 1
        assert scores.buffer(1, group, rows).shape == (group.stop - group.start, rows.stop - rows.start, m)
    assert bool((covered == 1).all())
    assert len(scores.buffers) == 2
    assert scores.keys.is_contiguous() == (tile_rows < n or m == 1)


@pytest.mark.parametrize("share", [0.999, 1.001])
def test_float32_sweeps_at_the_bound_where_scaling_ends(share):
    """Logits reach both ends of the allowed range, and so do the weights that a second sweep starts from."""
    limit = LARGEST_SCALED_LOGIT[torch.float32] * share
    signs = torch.tensor([1.0, -1.0]).repeat(1, 150)[..., None]
    query, key = torch.full((1, 300, 1), limit), signs
    query[:, 200:] *= torch.linspace(-1, 1, 100)[:, None]
    assert float(bound_logits(query, key, -1.0)) == pytest.approx(limit)
    streaming = StreamingScores(query, key, -1.0, torch.float32)
    dense = DenseScores(query.double(), key.double(), -1.0)
    swept, expected = (iterate(scores.sweep, scores.start(), 3, None).key for scores in (streaming, dense))
    torch.testing.assert_close(swept.double(), expected, rtol=1e-5, atol=2e-5)


def test_keys_that_share_a_large_mean_are_still_scaled():
    query, key = (tensor.float() for tensor in tokens(50, 60))
    shifted = StreamingScores(query, key + 100, -1.0, torch.float32)
    assert float(bound_logits(query, key + 100, -1.0).amin()) > LARGEST_SCALED_LOGIT[torch.float32]
    assert max(shifted.largest_logits) <= LARGEST_SCALED_LOGIT[torch.float32]
    plain = DenseScores(query.double(), key.double(), -1.0)
    torch.testing.assert_close(shifted.sweep(shifted.start()).double(), plain.sweep(plain.start()), rtol=0, atol=1e-3)


def test_columns_that_underflow_take_the_log_domain():
    query = torch.tensor([[[1.0], [1.0]]])
    key = torch.tensor([[[0.0], [400.0]]])
    streaming, dense = StreamingScores(query, key, -1.0, torch.float32), DenseScores(query, key, -1.0)
    swept = streaming.sweep(streaming.start())
    assert torch.isfinite(swept).all()
    torch.testing.assert_close(swept, dense.sweep(dense.start()))


def test_tolerance_stops_each_head_by_itself():
    query, key = tokens(12, 12)
    query[1] *= 0.01
    both = DenseScores(query, key, -1.0)
    calls = []

    def counted(key_potential: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        return both.sweep(key_potential)

    together = iterate(counted, both.start(), 500, 1e-3)
    assert 2 < len(calls) < 500
    for head in range(2):
        alone = DenseScores(query[head : head + 1], key[head : head + 1], -1.0)
        single = iterate(alone.sweep, alone.start(), 500, 1e-3)
        torch.testing.assert_close(together.key[head : head + 1], single.key)
        torch.testing.assert_close(together.previous[head : head + 1], single.previous)


def test_tolerance_reached_means_close_to_converged():
    query, key = tokens(12, 12)
    scores = DenseScores(query, key, -1.0)
    stopped = iterate(scores.sweep, scores.start(), 10_000, 1e-9)
    converged = iterate(scores.sweep, scores.start(), 2000, None)
    torch.testing.assert_close(stopped.key, converged.key, rtol=0, atol=1e-6)
    assert math.isfinite(stopped.key.sum())
