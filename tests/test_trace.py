"""The trace that guidance leaves for figures: its numbers against sums written out, entropies against whole maps."""

import math

import pytest
import torch

from asag.blocks import Address
from asag.operators import METHODS, Operator, Sinkhorn, make_operator
from asag.trace import Trace, entropy
from asag.watched import ROWS, Watched, sample_rows
from tests.support import Softmax

MID = Address("mid", 0, 0)


def heads(tokens: int, seed: int = 0, gain: float = 2.0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(gain * torch.randn(2, 3, tokens, 8, generator=generator) for _ in range(3))


# Steps -------------------------------------------------------------------------------------------------------------


def test_steps_hold_scale_and_size_of_each_image():
    trace, delta = Trace(), torch.randn(2, 4, 6, 5, dtype=torch.float64)
    trace.begin_pass(10)
    trace.add_step(3, 1.5, delta)
    trace.add_step(4, torch.tensor([2.0, 4.0]).reshape(2, 1, 1, 1), 2 * delta)
    first, second = trace.steps
    rms = delta.square().mean(dim=(1, 2, 3)).sqrt().tolist()
    assert (first.number, first.scales) == (3, (1.5, 1.5))
    assert first.sizes == pytest.approx(rms)
    assert (second.number, second.scales) == (4, (2.0, 4.0))
    assert second.sizes == pytest.approx([2 * size for size in rms])
    assert second.pushes == pytest.approx([2.0 * 2 * rms[0], 4.0 * 2 * rms[1]])
    assert (first.cfg_sizes, second.cfg_sizes) == ((), ())
    assert trace.images == 2
    expected = ((1.5 * delta[1]) ** 2 + (4.0 * 2 * delta[1]) ** 2).mean(dim=0).sqrt()
    torch.testing.assert_close(trace.heat(1), expected)


def test_steps_hold_the_size_of_cfgs_own_push_of_each_image():
    trace, delta, cfg = Trace(), torch.ones(2, 4, 6, 5), torch.randn(2, 4, 6, 5, dtype=torch.float64)
    trace.begin_pass(1)
    trace.add_step(0, 1.5, delta, cfg=cfg)
    assert trace.steps[0].cfg_sizes == pytest.approx(cfg.square().mean(dim=(1, 2, 3)).sqrt().tolist())


def test_numbers_go_on_from_pass_to_pass_and_the_map_is_the_last_ones():
    trace = Trace()
    trace.begin_pass(3)
    for call in range(5):  # more than announced, as samplers that choose their steps do
        trace.add_step(call, 1.0, torch.ones(1, 4, 2, 2))
    trace.begin_pass(2)
    trace.add_step(1, 2.0, torch.ones(1, 4, 3, 3))
    assert [step.number for step in trace.steps] == [0, 1, 2, 3, 4, 6]
    torch.testing.assert_close(trace.heat(0), torch.full((3, 3), 2.0))
    trace.begin_pass(4)  # unguided
    assert trace.passes[-1].begins == 7
    torch.testing.assert_close(trace.heat(0), torch.full((3, 3), 2.0))


def test_frames_count_as_one_map():
    trace, delta = Trace(), torch.randn(1, 4, 3, 2, 5)
    trace.begin_pass(1)
    trace.add_step(0, 1.0, delta)
    torch.testing.assert_close(trace.heat(0), delta[0].square().mean(dim=(0, 1)).sqrt())


def test_packed_latents_make_a_map_where_their_size_is_known():
    trace, delta = Trace(), torch.randn(2, 9, 16)
    trace.begin_pass(2)
    trace.add_step(0, 1.0, delta)
    assert trace.heat(0) is None
    trace.add_step(1, 1.0, delta, (2, 3))  # three more tokens: a reference image's
    torch.testing.assert_close(trace.heat(1), delta[1, :6].square().mean(dim=1).sqrt().reshape(2, 3))


def test_half_precision_does_not_overflow_in_squares():
    trace = Trace()
    trace.begin_pass(1)
    trace.add_step(0, 100.0, torch.full((1, 4, 2, 2), 300.0, dtype=torch.float16))
    torch.testing.assert_close(trace.heat(0), torch.full((2, 2), 30000.0))
    assert trace.steps[0].sizes == (300.0,)


def test_an_empty_trace():
    trace = Trace()
    trace.begin_pass(3)
    assert (trace.images, trace.steps, trace.heat(0), trace.entropies()) == (0, [], None, {})


# Entropies ---------------------------------------------------------------------------------------------------------


def test_entropy_is_0_for_one_key_and_1_for_all_alike():
    assert entropy(torch.eye(5)) == 0.0
    assert entropy(torch.full((2, 3, 7), 1 / 7)) == pytest.approx(1.0)
    assert entropy(torch.tensor([[0.5, 0.5, 0.0, 0.0]])) == pytest.approx(0.5)
    assert entropy(torch.ones(2, 1)) == 1.0


def whole_entropy(weights: torch.Tensor) -> float:
    return float(torch.special.entr(weights).sum(-1).mean() / math.log(weights.shape[-1]))


@pytest.mark.parametrize("method", METHODS)
def test_a_watched_operator_computes_the_same_and_tells_both_entropies(method):
    query, key, value = heads(20)
    operator, trace = make_operator(method), Trace()
    trace.begin_pass(1)
    trace.add_step(0, 1.0, torch.ones(2, 4, 4, 5))
    watched = Watched(operator, trace).at(MID)
    assert torch.equal(watched.plain(query, key, value, (4, 5)), operator.plain(query, key, value, (4, 5)))
    ordinary, weakened = trace.entropies()[MID]
    assert ordinary == pytest.approx(whole_entropy(torch.softmax(query @ key.mT / math.sqrt(8), -1)), abs=1e-5)
    identity = torch.eye(20).expand(2, 3, -1, -1)
    assert weakened == pytest.approx(whole_entropy(operator.plain(query, key, identity, (4, 5))), abs=1e-4)


def test_joint_attention_is_told_of_among_image_tokens_alone():
    query, key, value = heads(17)
    image, trace = slice(5, 17), Trace()
    trace.begin_pass(1)
    trace.add_step(0, 1.0, torch.ones(2, 4, 3, 4))
    out = Watched(Sinkhorn(), trace).at(MID).joint(query, key, value, image)
    assert torch.equal(out, Sinkhorn().joint(query, key, value, image))
    Watched(Sinkhorn(), trace).at(Address("out", 3, 0)).plain(*(tensor[:, :, image] for tensor in (query, key, value)))
    assert len(trace.passes[0].entropies[MID]) == 1
    assert trace.entropies()[MID] == trace.entropies()[Address("out", 3, 0)]


def test_entropies_are_means_over_the_steps_of_the_last_guided_pass():
    trace = Trace()
    for entropies in ([(0.2, 0.8), (0.4, 1.0)], [(0.5, 0.7)], []):
        trace.begin_pass(2)
        for step, pair in enumerate(entropies):
            trace.add_entropies(MID, *pair)
            trace.add_step(step, 1.0, torch.ones(1, 4, 2, 2))
        if len(entropies) == 2:
            assert trace.entropies()[MID] == pytest.approx((0.3, 0.9))
    assert trace.entropies()[MID] == (0.5, 0.7)


def test_few_rows_are_looked_at_and_none_of_a_large_map_is_too_many():
    query = torch.zeros(1, 1, 1000, 1)
    rows = sample_rows(query, query)
    assert rows.shape == (ROWS,)
    assert (int(rows[0]), int(rows[-1])) == (7, 992)
    assert len(set(rows.tolist())) == ROWS
    assert sample_rows(query[:, :, :5], query).tolist() == [0, 1, 2, 3, 4]
    assert sample_rows(query, torch.zeros(1, 1, 1, 1).expand(1, 1, 1 << 24, 1)).tolist() == [250, 750]


def test_an_operator_that_is_not_watched_is_the_same_at_every_address():
    operator: Operator = Softmax()
    assert operator.at(MID) is operator
    assert make_operator("asag").at(MID) == make_operator("asag")
