"""The 2-D experiment: an exact score, a sampler that samples what it should, and rules that do what they say."""

import json
import math

import pytest
import torch

from research.guidance_breaks import figures, guides, report, tables, toy
from research.guidance_breaks.guides import Moment
from research.guidance_breaks.mixture import Mixture, beta, ring, signal
from research.guidance_breaks.toy import MAIN, Case, Scene


def lopsided() -> Mixture:
    means = torch.tensor([[1.0, 0.5], [-0.8, 0.3], [0.1, -1.2]], dtype=torch.float64)
    return Mixture(means, torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).log(), 0.3)


def points(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moment(gradient: torch.Tensor, scale: float = 1.0, **changed) -> Moment:
    usual = {"x": points(len(gradient), 8), "score": points(len(gradient), 9), "signal": 0.6, "gain": 1.0}
    return Moment(gradient=gradient, scale=scale, **(usual | changed))


@pytest.mark.parametrize("time", [0.0, 0.1, 0.5, 1.0])
def test_score_is_the_gradient_of_the_log_density(time):
    x = points(50).requires_grad_()
    mixture = lopsided().at(time)
    (expected,) = torch.autograd.grad(mixture.log_density(x).sum(), x)
    torch.testing.assert_close(mixture.score(x.detach()), expected)


def test_log_density_is_that_of_torch_distributions():
    mixture, family = lopsided(), torch.distributions
    parts = family.Independent(family.Normal(mixture.means, mixture.spread), 1)
    expected = family.MixtureSameFamily(family.Categorical(logits=mixture.log_weights), parts).log_prob(points(20))
    difference = mixture.log_density(points(20)) - expected
    torch.testing.assert_close(difference, difference[0].expand(20))


def test_signal_integrates_beta():
    times = torch.linspace(0, 0.7, 2001, dtype=torch.float64)
    integral = torch.trapezoid(torch.tensor([beta(time) for time in times.tolist()], dtype=torch.float64), times)
    assert signal(0.7) == pytest.approx(math.exp(-0.5 * integral))
    assert (beta(0), beta(1), signal(0)) == (0.1, 20, 1)


def test_tilted_mixture_is_the_density_times_the_reward():
    mixture, centre = lopsided(), torch.tensor([0.4, -0.2], dtype=torch.float64)
    x = points(40, 3)
    expected = mixture.log_density(x) - 7 * (x - centre).square().sum(-1)
    difference = mixture.tilted(centre, 7.0).log_density(x) - expected
    torch.testing.assert_close(difference, difference[0].expand(40))


def test_unguided_samples_have_the_mixtures_mean_and_covariance():
    scene, samples = Scene(3, 1.5, 0.3, (0.0, 0.0)), 3000
    found = toy.simulate(Case(scene, True, "unguided", 0.0), [0], samples).points[0]
    means = scene.mixture().means
    covariance = means.T @ means / 3 - torch.outer(means.mean(0), means.mean(0)) + 0.09 * torch.eye(2)
    assert (found.mean(0) - means.mean(0)).abs().max() < 4 * math.sqrt(covariance.max() / samples)
    assert (found.T.cov() - covariance).abs().max() < 4 * covariance.max() * math.sqrt(2 / samples)
    assert toy.modes_kept(found[None], scene.mixture()).item() > 0.99


def test_a_seed_gives_the_same_whatever_runs_beside_it():
    case = Case(MAIN, False, "adaptive", 20.0, steps=60)
    alone, beside = toy.simulate(case, [4], 50), toy.simulate(case, [1, 4], 50)
    torch.testing.assert_close(alone.points[0], beside.points[1])
    torch.testing.assert_close(alone.energy[0], beside.energy[1])
    assert torch.equal(alone.points, toy.simulate(case, [4], 50).points)
    assert not torch.allclose(beside.points[0], beside.points[1])


def test_adaptive_scale_is_equation_2_with_the_papers_norm():
    guide = guides.adaptive(0.9, 1e-3)
    average = None
    for step in range(5):
        gradient = points(6, step)
        size = gradient.norm(dim=-1, keepdim=True)
        average = size if average is None else 0.9 * average + 0.1 * size
        expected = 50 / (average + 1e-3) * gradient
        torch.testing.assert_close(guide(moment(gradient, 50.0)), expected, rtol=1e-5, atol=0)


def test_clipping_bounds_the_push_and_leaves_short_ones():
    gradient = torch.cat([3 * points(30), 0.01 * points(30, 1)])
    clipped = guides.clip_gradient(1.0)(moment(gradient, 10.0))
    assert clipped.norm(dim=-1).max() <= 10 + 1e-9
    torch.testing.assert_close(clipped[30:], 10 * gradient[30:])
    whole = guides.clip_term(1.0)(moment(gradient, 10.0))
    assert whole.norm(dim=-1).max() <= 1 + 1e-9
    torch.testing.assert_close(whole[30:], 10 * gradient[30:])
    for push in (clipped, whole):
        torch.testing.assert_close(torch.cosine_similarity(push, gradient), torch.ones(60, dtype=torch.float64))


def test_soft_guidance_is_a_smooth_clip():
    gradient = torch.tensor([[0.0, 0.0], [3e-3, 4e-3], [30.0, 40.0]], dtype=torch.float64)
    push = guides.soft(1.0)(moment(gradient, 2.0))
    torch.testing.assert_close(push[:2], 2 * gradient[:2], rtol=1e-4, atol=0)
    torch.testing.assert_close(push[2], torch.tensor([1.2, 1.6], dtype=torch.float64))


@pytest.mark.parametrize("gain", [1.0, 0.25])
def test_dynamic_threshold_holds_the_predicted_clean_point_inside(gain):
    given = moment(points(40), 1.0, gain=gain)
    push = guides.dynamic_threshold(2.0)(given)

    def clean(term: torch.Tensor) -> torch.Tensor:
        return (given.x + (1 - 0.36) * (given.score + gain * term)) / 0.6

    before, after = clean(given.gradient).abs().amax(-1), clean(push).abs().amax(-1)
    inside = before <= 2
    assert 0 < inside.sum() < 40
    torch.testing.assert_close(push[inside], given.gradient[inside])
    torch.testing.assert_close(after[~inside], torch.full_like(after[~inside], 2.0))


def test_push_without_beta_and_energy_by_hand():
    """One step from t = 1, where β is 20."""
    weak, strong = (toy.simulate(Case(MAIN, times_beta, "fixed", 3.0, steps=1), [0], 8) for times_beta in (False, True))
    unguided = toy.simulate(Case(MAIN, True, "unguided", 0.0, steps=1), [0], 8).points
    torch.testing.assert_close(strong.points - unguided, 20 * (weak.points - unguided))
    torch.testing.assert_close(weak.energy, (weak.points - unguided).square().sum(-1))


def test_fixed_guidance_blows_up_beyond_the_step_limit_and_adaptive_does_not():
    calm, wild = (toy.simulate(Case(MAIN, True, "fixed", scale), [0], 20).energy.mean() for scale in (20.0, 30.0))
    assert calm < 200 < 1e6 < wild
    assert toy.simulate(Case(MAIN, True, "adaptive", 30.0), [0], 20).energy.mean() < 2000


def test_metrics_by_hand():
    square = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]]], dtype=torch.float64)
    assert toy.mean_distance(square).item() == pytest.approx(10 / 3)
    assert toy.mean_reward(square, (0.0, 0.0)).item() == pytest.approx(2 / 3, abs=1e-6)
    assert toy.modes_kept(square[:, :1], ring(4, 1.0, 0.1)).item() == pytest.approx(0.25)
    assert toy.with_error(torch.tensor([1.0, 3.0])) == [2.0, 1.0]
    assert toy.with_error(torch.tensor([1e160, 3e160], dtype=torch.float64)) == [2e160, 1e160]


def test_interpolation_of_a_curve_at_a_reward():
    curve = [{"metrics": {"reward": [place, 0.0], "diversity": [1 - place, 0.01]}} for place in (0.8, 0.2, 0.4)]
    diversity, slope, error = tables.interpolated(curve, 0.5)
    assert (diversity, slope, error) == pytest.approx((0.5, -1, 0.01))
    assert tables.interpolated(curve, 0.9) is None


def test_what_there_is_not_is_refused():
    with pytest.raises(ValueError, match="allowed: fixed, adaptive"):
        toy.simulate(Case(MAIN, True, "magic", 1.0), [0], 2)
    with pytest.raises(ValueError, match="at least 2"):
        next(toy.run([0], 10))


def test_the_page_holds_what_was_written(tmp_path, monkeypatch):
    """All lines of a tiny run, with few steps: strict JSON, every table filled, every figure drawn."""
    simulate = toy.simulate

    def hurried(case, seeds, samples):
        return simulate(Case(**{**vars(case), "steps": 3}), seeds, samples)

    monkeypatch.setattr(toy, "simulate", hurried)
    records = list(toy.run(range(2), 4, small_samples=3))
    assert json.loads(json.dumps(records, allow_nan=False)) == json.loads(json.dumps(records))
    figures.draw_all(json.loads(json.dumps(records)), tmp_path)
    assert len(list(tmp_path.glob("adaptive-*.png"))) == 4
    page = report.report(json.loads(json.dumps(records)))
    assert page.count("| --- |") >= 7
    assert "0.72 | 0.89 | No" in page
