"""The unit of the scale: factors against sums written out, and the same push whatever a model predicts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from asag.guidance import cfg_push, mean_rows
from asag.units import UNITS, UnitScale

SHAPE = (2, 4, 6, 5)


def normal(seed: int, size: float = 1.0) -> Tensor:
    return size * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def size(tensor: Tensor) -> Tensor:
    """The RMS of each image."""
    return tensor.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()


def test_in_the_papers_unit_the_scale_is_the_factor():
    assert UnitScale("paper")(1.5, normal(1), normal(2)) == 1.5


def test_in_unit_push_the_scale_is_the_size_of_the_push():
    unit, first, second = UnitScale("push"), normal(1, 0.1), normal(2, 0.4)
    torch.testing.assert_close(unit(0.2, first, None), 0.2 / (size(first) + 1e-3), rtol=1e-12, atol=0)
    average = 0.9 * size(first) + 0.1 * size(second)
    torch.testing.assert_close(unit(0.2, second, normal(3)), 0.2 / (average + 1e-3), rtol=1e-12, atol=0)


def test_in_unit_cfg_the_scale_is_the_size_beside_cfgs_own_push():
    unit, first, second, cfg = UnitScale("cfg"), normal(1, 0.1), normal(2, 0.4), normal(3, 0.3)
    torch.testing.assert_close(size(unit(0.3, first, cfg) * first), 0.3 * size(cfg), rtol=1e-12, atol=0)
    ratio = 0.5 * size(first) / size(cfg) + 0.5 * size(second) / size(2 * cfg)
    torch.testing.assert_close(unit(0.3, second, 2 * cfg), 0.3 / ratio, rtol=1e-12, atol=0)
    assert unit.without_cfg == 0


def test_a_delta_of_rounding_is_not_blown_up():
    for unit, most in (("push", 0.3 / 1e-3), ("cfg", 0.3 / 2e-3)):
        cfg = torch.full(SHAPE, 0.5, dtype=torch.float64)
        factor = UnitScale(unit)(0.3, normal(1, 1e-9), cfg)
        torch.testing.assert_close(factor, torch.full_like(factor, most), rtol=1e-5, atol=0)


def test_cfg_that_pushes_nowhere_leaves_no_push():
    factor = UnitScale("cfg")(1.0, normal(1), torch.zeros(SHAPE))
    assert (factor * normal(1)).abs().max() < 1e-10


@pytest.mark.parametrize("rounding", [0.0, 1e-3])
def test_a_step_in_which_cfg_pushes_nowhere_is_in_no_average(rounding: float):
    """As with [:a cat:0.3], where both prompts are empty at first; the second image's differ in all steps."""
    unit, deltas = UnitScale("cfg"), [normal(seed, 0.1) for seed in (1, 2, 3, 4)]
    cfgs = [normal(seed, 0.3) for seed in (5, 6, 7, 8)]
    for index in (0, 2):
        cfgs[index][0] *= rounding
    pushes = [size(unit(0.3, delta, cfg) * delta) for delta, cfg in zip(deltas, cfgs, strict=True)]
    ratios = [size(delta) / size(cfg).clamp_min(1e-12) for delta, cfg in zip(deltas, cfgs, strict=True)]
    second, fourth = ratios[1][0], 0.5 * ratios[1][0] + 0.5 * ratios[3][0]
    expected = [size(cfgs[0])[0], size(deltas[1])[0] / second, size(cfgs[2])[0], size(deltas[3])[0] / fourth]
    for push, each in zip(pushes, expected, strict=True):
        torch.testing.assert_close(push[0], 0.3 * each, rtol=1e-9, atol=1e-12)
    average = ratios[0][1]
    for push, delta, ratio in zip(pushes, deltas, ratios, strict=True):
        average = ratio[1] if ratio is ratios[0] else 0.5 * average + 0.5 * ratio[1]
        torch.testing.assert_close(push[1], 0.3 * size(delta)[1] / average, rtol=1e-9, atol=1e-12)


def test_without_cfg_the_scale_is_a_tenth_in_unit_push_until_there_is_cfg():
    unit, first, second, cfg = UnitScale("cfg"), normal(1, 0.1), normal(2, 0.4), normal(3, 0.3)
    torch.testing.assert_close(unit(2.0, first, None), 0.2 / (size(first) + 1e-3), rtol=1e-12, atol=0)
    average = 0.9 * size(first) + 0.1 * size(second)
    torch.testing.assert_close(unit(2.0, second, None), 0.2 / (average + 1e-3), rtol=1e-12, atol=0)
    expected = 2.0 * size(cfg) / size(first)
    torch.testing.assert_close(unit(2.0, first, cfg), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(unit(2.0, second, None), expected, rtol=1e-12, atol=0)
    assert unit.without_cfg == 2
    unit = UnitScale("cfg")
    unit(2.0, second, 0 * cfg)  # both prompts are the same, so that nothing is known yet
    torch.testing.assert_close(unit(2.0, first, None), 0.2 / (size(first) + 1e-3), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["push", "cfg"])
def test_averages_are_of_one_pass_and_of_one_number_of_images(name: str):
    first, second, cfg = normal(1, 0.1), normal(2, 0.4), normal(3, 0.3)
    fresh = UnitScale(name)(1.0, second, cfg)
    unit = UnitScale(name)
    unit(1.0, first, cfg)
    assert not torch.equal(unit(1.0, second, cfg), fresh)
    unit.begin_pass()
    torch.testing.assert_close(unit(1.0, second, cfg), fresh, rtol=0, atol=0)
    unit(1.0, torch.cat([first, first]), torch.cat([cfg, cfg]))
    torch.testing.assert_close(unit(1.0, second, cfg), fresh, rtol=0, atol=0)


@pytest.mark.parametrize("name", UNITS)
def test_half_precision_does_not_overflow(name: str):
    delta = torch.full(SHAPE, 300.0, dtype=torch.float16)
    factor = UnitScale(name)(1.5, delta, delta)
    assert torch.as_tensor(factor * delta).isfinite().all()


# What a model may predict: its prediction of (x, noise ε) at alpha = √ᾱ and sigma = √(1-ᾱ), x = alpha x₀ + sigma ε, and
# what a change of that prediction does to ε.
SPACES = {
    "noise": (lambda x, noise, alpha, sigma: noise, lambda alpha, sigma: 1.0),
    "velocity": (lambda x, noise, alpha, sigma: (noise - sigma * x) / alpha, lambda alpha, sigma: alpha),
    "picture": (lambda x, noise, alpha, sigma: (x - sigma * noise) / alpha, lambda alpha, sigma: -alpha / sigma),
    # ε - x₀ at the level of noise where flow matching has the same signal to noise.
    "flow": (
        lambda x, noise, alpha, sigma: noise - (x - sigma * noise) / alpha,
        lambda alpha, sigma: alpha / (alpha + sigma),
    ),
}


@pytest.mark.parametrize("weights", [[1.0], [0.8, -0.4], [1.0, 1.0]], ids=["plain", "negative", "two"])
def test_pushes_in_unit_cfg_are_the_same_whatever_the_model_predicts(weights: list[float]):
    """Over steps from much noise to little, with the parts of a prompt: the push, as noise, in float64."""
    pushes: dict[str, list[Tensor]] = {name: [] for name in SPACES}
    for name, (predicted, to_noise) in SPACES.items():
        unit = UnitScale("cfg")
        for step, angle in enumerate((1.5, 1.2, 0.8, 0.3, 0.05)):
            alpha, sigma = torch.tensor(angle).double().cos(), torch.tensor(angle).double().sin()
            x, noises = normal(10 * step), [normal(10 * step + 1 + number) for number in range(2 + len(weights))]
            uncond, weak, *conds = (predicted(x, noise, alpha, sigma) for noise in noises)
            rows = torch.stack([cond - uncond for cond in conds], dim=1).flatten(0, 1)
            guided = uncond + 5.0 * sum(w * (cond - uncond) for w, cond in zip(weights, conds, strict=True))
            delta = 0.1 * (1 + step) * (conds[0] - weak)
            factor = unit(0.3, delta, cfg_push(guided, uncond, mean_rows(rows, [weights] * 2)))
            pushes[name].append(to_noise(alpha, sigma) * factor * delta)
    for name in SPACES:
        for push, expected in zip(pushes[name], pushes["noise"], strict=True):
            torch.testing.assert_close(push, expected, rtol=1e-10, atol=1e-10)
