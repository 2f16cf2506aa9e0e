"""Equation 4, the row-shift rule, the window and schedules, the rescaling."""

import math

import pytest
import torch

from asag.guidance import (
    SCHEDULES,
    AdaptiveScale,
    in_window,
    keep_contrast,
    mean_rows,
    picked_rows,
    rescale_factor,
    scheduled_scale,
    shift_rows,
)


def rows(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 4, 6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def combine(x_out: torch.Tensor, conds_list, images: int, scale: float) -> torch.Tensor:
    """What AUTOMATIC1111's combine_denoised does (a double of the host's function)."""
    denoised = x_out[-images:].clone()
    for image, conds in enumerate(conds_list):
        for row, weight in conds:
            denoised[image] += (x_out[row] - x_out[-images:][image]) * (weight * scale)
    return denoised


@pytest.mark.parametrize("scale", [1.0, 7.0, -2.0, 0.0])
def test_row_shift_moves_the_combination_by_exactly_the_shift(scale):
    weights = [[1.0, 0.5], [2.0, -1.0, 0.3]]
    predictions, shift = rows(7, 0), rows(2, 1)
    conds_list = [[(0, 1.0), (1, 0.5)], [(2, 2.0), (3, -1.0), (4, 0.3)]]
    before = combine(predictions, conds_list, 2, scale)
    images = [image for image, parts in enumerate(weights) for _ in parts] + [0, 1]
    shift_rows(predictions, shift, images)
    torch.testing.assert_close(combine(predictions, conds_list, 2, scale), before + shift)


@pytest.mark.parametrize("numbers", [[0], [0, 1, 2], [2, 0, 1, 1], [1, 2, 0, 1, 2], range(1, 3)])
def test_picked_rows_are_those_of_an_index_and_a_copy(numbers):
    tensor = torch.arange(6.0).reshape(3, 2)
    picked = picked_rows(tensor, numbers)
    torch.testing.assert_close(picked, tensor[list(numbers)])
    picked.zero_()
    assert tensor.sum() == 15


def test_equation_4():
    cond, perturbed = rows(3, 0), rows(3, 1)
    delta = mean_rows(cond - perturbed, [[1.0], [1.0], [1.0]])
    torch.testing.assert_close(delta, cond - perturbed)
    guided = cond.clone()
    shift_rows(guided, 1.5 * delta, [0, 1, 2])
    torch.testing.assert_close(guided, cond + 1.5 * (cond - perturbed))


def test_composed_prompts_share_one_delta_by_weight():
    cond, perturbed = rows(4, 0), rows(4, 1)
    difference = cond - perturbed
    delta = mean_rows(cond - perturbed, [[1.0], [1.0, -2.0, 1.0]])
    torch.testing.assert_close(delta[0], difference[0])
    torch.testing.assert_close(delta[1], (difference[1] - 2 * difference[2] + difference[3]) / 4)
    equal = mean_rows(cond[:2] - perturbed[:2], [[0.0, 0.0]])
    torch.testing.assert_close(equal[0], difference[:2].mean(0))
    with pytest.raises(ValueError, match="weights: 3 rows; allowed: those of the predictions, 4"):
        mean_rows(cond - perturbed, [[1.0], [1.0, 1.0]])


def test_rows_keep_their_dtype():
    half = torch.ones(2, 1, dtype=torch.float16)
    shift_rows(half, torch.full((1, 1), 0.5), [0, 0])
    assert half.dtype == torch.float16
    assert half.tolist() == [[1.5], [1.5]]


def test_window_counts_model_calls_from_zero():
    assert [call for call in range(10) if in_window(call, 10, 0.2, 0.5)] == [2, 3, 4]
    assert [call for call in range(3) if in_window(call, 3, 0.0, 1.0)] == [0, 1, 2]
    assert not any(in_window(call, 5, 0.4, 0.4) for call in range(5))
    assert [call for call in range(12) if in_window(call, 10, 0.9, 1.0)] == [9, 10, 11]


def test_calls_beyond_those_announced_count_as_the_last():
    """DPM adaptive makes as many calls as it likes; DDIM some more than its steps."""
    for schedule in SCHEDULES:
        last = scheduled_scale(2.0, schedule, 9, 10, 0.0, 1.0)
        assert [scheduled_scale(2.0, schedule, call, 10, 0.0, 1.0) for call in (10, 60)] == [last, last]
    assert not in_window(60, 10, 0.0, 0.5)


def test_schedules():
    def scales(schedule, **window):
        window = {"start": 0.0, "end": 1.0} | window
        return [scheduled_scale(2.0, schedule, call, 10, **window) for call in range(10)]

    assert scales("constant") == [2.0] * 10
    assert scales("linear") == pytest.approx([2 - 0.2 * call for call in range(10)])
    assert scales("cosine")[0] == 2
    assert scales("cosine")[5] == pytest.approx(1)
    bell = scales("bell")
    assert bell == pytest.approx(bell[::-1])
    assert max(bell) == pytest.approx(2.0, abs=0.06)
    assert min(bell) > 0
    for schedule in SCHEDULES:
        windowed = scales(schedule, start=0.3, end=0.6)
        assert [scale > 0 for scale in windowed] == [3 <= call < 6 for call in range(10)]
        assert max(windowed) <= 2


@pytest.mark.parametrize(("start", "end", "calls"), [(0.0, 1.0, 10), (0.25, 0.8, 20), (0.5, 0.75, 8)])
def test_schedules_are_what_their_formulas_say(start, end, calls):
    """Call by call, u being the place in the window; in a bell, that of the call's middle."""
    assert SCHEDULES == ("constant", "linear", "cosine", "bell"), "the names that infotexts hold"
    for call in range(calls):
        inside = start <= call / calls < end
        u = (call / calls - start) / (end - start)
        bell = 3 * math.sin(math.pi * min(u + 0.5 / (calls * (end - start)), 1)) ** 2
        for schedule, scale in zip(SCHEDULES, (3, 3 * (1 - u), 1.5 * (1 + math.cos(math.pi * u)), bell), strict=True):
            found = scheduled_scale(3.0, schedule, call, calls, start, end)
            assert found == pytest.approx(scale if inside else 0, abs=1e-12), (schedule, call)


def test_a_bell_over_one_call_is_at_its_highest_there_and_ends_with_its_window():
    assert scheduled_scale(2.0, "bell", 3, 10, 0.3, 0.4) == pytest.approx(2)
    assert scheduled_scale(2.0, "bell", 4, 10, 0.35, 0.42) == pytest.approx(0)


def test_rescale_brings_the_spread_back():
    reference, guided = rows(3, 0), 3 * rows(3, 1) + 1
    full = guided * rescale_factor(reference, guided, 1.0)
    spread = tuple(range(1, 4))
    torch.testing.assert_close(full.std(spread), reference.std(spread), rtol=0, atol=1e-12)
    assert torch.equal(rescale_factor(reference, guided, 0.0), torch.ones(3, 1, 1, 1, dtype=torch.float64))
    half = rescale_factor(reference, guided, 0.5)
    torch.testing.assert_close(half, (rescale_factor(reference, guided, 1.0) + 1) / 2)
    assert torch.isfinite(rescale_factor(reference, torch.zeros_like(guided), 1.0)).all()
    torch.testing.assert_close(rescale_factor(reference, 1e-3 * guided, 1.0), 1e3 * (2 * half - 1))


@pytest.mark.parametrize("channels", [1, -1])
def test_of_a_push_the_part_along_the_picture_is_taken_out_channel_by_channel(channels):
    picture, other = rows(3, 0) + 7, rows(3, 1)
    pattern = picture - picture.mean((2, 3), keepdim=True)
    factors = torch.tensor([[0.5, -2.0, 3.0, 0.0]] * 3, dtype=picture.dtype)[:, :, None, None]
    # What has no part along it, and what has nothing else.
    beside = other - (other * pattern).sum((2, 3), keepdim=True) / pattern.square().sum((2, 3), keepdim=True) * pattern
    delta = beside + factors * pattern

    def kept(amount, size=1.0):
        given = [each if channels == 1 else each.flatten(2).transpose(1, 2) for each in (delta, size * picture)]
        found = keep_contrast(*given, amount, channels)
        return found if channels == 1 else found.transpose(1, 2).unflatten(2, picture.shape[2:])

    torch.testing.assert_close(kept(0.0), beside, rtol=0, atol=1e-10)
    torch.testing.assert_close(kept(0.25), beside + 0.25 * factors * pattern, rtol=0, atol=1e-10)
    for size in (-30.0, 1e-3):
        torch.testing.assert_close(kept(0.0, size=size), beside, rtol=0, atol=1e-10)
    assert torch.equal(kept(1.0), delta)
    assert keep_contrast(delta, picture, 1.0) is delta
    torch.testing.assert_close(keep_contrast(delta, picture, 0.0), beside, rtol=0, atol=1e-10)
    assert torch.isfinite(keep_contrast(delta, torch.zeros_like(picture), 0.0)).all()


def test_adaptive_scale_divides_by_the_running_size_per_image():
    adaptive = AdaptiveScale()
    small, large = (torch.full((1, 4, 2, 2), size, dtype=torch.float64) for size in (0.01, 0.5))
    first = adaptive(2.0, torch.cat([small, large]))
    assert first.shape == (2, 1, 1, 1)
    assert first.flatten().tolist() == pytest.approx([2 / 0.011, 2 / 0.501], rel=1e-12)
    second = adaptive(2.0, torch.cat([large, large]))
    assert second.flatten().tolist() == pytest.approx([2 / (0.9 * 0.01 + 0.1 * 0.5 + 1e-3), 2 / 0.501], rel=1e-12)
    assert adaptive(2.0, small).flatten().tolist() == pytest.approx([2 / 0.011])
