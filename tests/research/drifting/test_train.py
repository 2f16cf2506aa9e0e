"""Drift fields against POT and direct formulas; metrics against cases known by hand; a sweep from end to end."""

import json
import math

import numpy as np
import ot
import pytest
import torch

from research.drifting import data, report, train
from research.drifting.field import coupling, one_sided_field, two_sided_field


def points(count: int, d: int = 2, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, d, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize(("n", "m", "d"), [(40, 40, 2), (24, 36, 2), (30, 30, 64)])
@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_two_sided_coupling_is_pots(n, m, d, temperature):
    samples, data = (points(n, d) / d, points(m, d, seed=1, shift=0.5) / d)
    cost = torch.cdist(samples.double(), data.double()).square().numpy()
    weights = np.full(n, 1 / n), np.full(m, 1 / m)
    theirs = ot.sinkhorn(*weights, cost, reg=temperature, method="sinkhorn_log", stopThr=1e-12, numItermax=10_000)
    ours = coupling(samples, data, temperature, sweeps=1000, hottest=2.0)
    np.testing.assert_allclose(ours.numpy(), n * theirs, atol=1e-4)
    np.testing.assert_allclose(ours.sum(dim=0), n / m, rtol=1e-3)


@pytest.mark.parametrize("self_pairs", [True, False])
@pytest.mark.parametrize("temperature", [1e-3, 0.3, 10.0])
def test_one_sided_is_the_formula(temperature, self_pairs):
    samples, data = points(30), points(20, seed=1, shift=7.0)

    def moved(others):
        logits = -(samples[:, None].double() - others[None].double()).square().sum(dim=2) / temperature
        if others is samples and not self_pairs:
            logits -= torch.eye(30) * 1e9
        kernel = torch.exp(logits - logits.amax(dim=1, keepdim=True))
        return kernel @ others.double() / kernel.sum(dim=1, keepdim=True)

    expected = moved(data) - moved(samples)
    found = one_sided_field(samples, data, temperature, self_pairs).double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4)


def test_without_self_pairs_samples_of_the_data_expect_no_drift():
    drawn = torch.randn(2000, 21, 1, generator=torch.Generator().manual_seed(0))
    samples, data = drawn[:, :11], drawn[:, 11:]
    # The drift of the samples near 1: self-pairs hold them back, towards the data's mean.
    near = (samples - 1).abs() < 0.2
    drift = {pairs: one_sided_field(samples, data, 0.5, pairs)[near] for pairs in (True, False)}
    error = float(drift[False].std() / math.sqrt(near.sum()))
    assert abs(float(drift[False].mean())) < 4 * error < 0.1
    assert float(drift[True].mean()) < -8 * error


def test_one_sample_has_no_others():
    with pytest.raises(ValueError, match="samples: 1 point; allowed without self-pairs: at least 2"):
        one_sided_field(points(1), points(3), 1.0, self_pairs=False)


@pytest.mark.parametrize("temperature", [0.01, 0.3, 10.0])
def test_fields_vanish_where_the_samples_are_the_data(temperature):
    samples = points(50)
    data = samples[torch.randperm(50, generator=torch.Generator().manual_seed(2))]
    other = points(50, seed=1)
    for field in (one_sided_field, two_sided_field):
        assert field(samples, data, temperature).abs().max() < 1e-4
        assert field(samples, other, temperature).abs().max() > 0.1


def test_only_the_two_sided_field_leaves_a_mode_for_one_that_is_empty():
    """The mechanism: at low temperature, samples on one of two modes are at rest if the coupling is one-sided."""
    mode = points(20) * 0.01
    data = torch.cat([mode, mode + torch.tensor([3.0, 0.0])])
    samples = torch.cat([mode, mode + 0.001])
    assert one_sided_field(samples, data, 0.05).abs().max() < 0.01
    assert two_sided_field(samples, data, 0.05, sweeps=2000).mean(dim=0)[0] == pytest.approx(1.5, abs=0.05)


def test_fields_move_with_the_points():
    samples, data = points(30), points(40, seed=1)
    for field in (one_sided_field, two_sided_field):
        moved = field(samples + 5, data + 5, 0.2)
        torch.testing.assert_close(moved, field(samples, data, 0.2), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("field", [one_sided_field, two_sided_field])
def test_groups_do_not_see_each_other(field):
    samples, data = (torch.stack([points(20, seed=seed), points(20, seed=seed + 1) * 3]) for seed in (0, 2))
    together = field(samples, data, 0.1)
    for group in range(2):
        torch.testing.assert_close(together[group], field(samples[group], data[group], 0.1), rtol=1e-3, atol=1e-4)


def test_cooling_brings_few_sweeps_close():
    samples, data = points(60), points(60, seed=1)
    straight, cooled = (
        (coupling(samples, data, 0.004, sweeps=5, hottest=hottest).sum(dim=0) - 1).abs().mean() for hottest in (0, 4)
    )
    assert cooled < straight / 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((points(3), points(3), 0.0), "temperature: 0.0; allowed: a finite number above 0"),
        ((points(3), points(3), math.nan), "temperature: nan"),
        ((points(3)[0], points(3), 1.0), r"samples: shape \(2,\); allowed: \(points, d\) or \(groups, points, d\)"),
        ((points(3), points(3)[:0], 1.0), r"data: shape \(0, 2\)"),
        (
            (points(3), points(3, d=4), 1.0),
            r"data: torch.float32 of shape \(3, 4\); allowed: dtype, groups and d of samples",
        ),
        ((points(3).half(), points(3).half(), 1.0), "samples: dtype torch.float16; allowed: float32 or float64"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    for field in (one_sided_field, two_sided_field):
        with pytest.raises(ValueError, match=message):
            field(*arguments)


def test_two_sided_needs_sweeps():
    with pytest.raises(ValueError, match="sweeps: 0; allowed: at least 1"):
        two_sided_field(points(3), points(3), 1.0, sweeps=0)


def test_coverage_counts_classes_with_one_sample_in_a_hundred():
    classes = torch.tensor([0] * 980 + [1] * 10 + [2] * 9 + [-1])
    found = train.class_figures(classes, 4)
    assert found["coverage"] == 0.5
    assert found["in_class"] == pytest.approx(0.999)
    even = train.class_figures(torch.arange(4).repeat(25), 4)
    assert even == {"coverage": 1.0, "entropy": pytest.approx(1.0), "in_class": 1.0}
    assert train.class_figures(torch.full((5,), -1), 4) == {"coverage": 0.0, "entropy": 0.0, "in_class": 0.0}


@pytest.mark.parametrize(("name", "modes"), [("ring", 8), ("grid", 25)])
def test_mixtures(name, modes):
    target = data.load(name)
    assert target.train.mean(dim=0).abs().max() < 0.05
    assert float(target.train.var(dim=0).sum()) == pytest.approx(1, abs=0.05)
    found = train.class_figures(target.classify(target.held_out), target.classes)
    assert target.classes == modes
    assert found["coverage"] == 1
    # Within three standard deviations in the plane: 1 - exp(-9 / 2).
    assert found["in_class"] == pytest.approx(0.989, abs=0.01)
    assert target.classify(torch.full((1, 2), 9.0)).tolist() == [-1]
    with pytest.raises(ValueError, match="name: 'moons'; allowed: ring, grid, digits"):
        data.load("moons")


def test_distances():
    first = points(4000, d=3)
    second = first * 2 + torch.tensor([1.0, 0.0, 0.0])
    # Between N(0, 1) and N(m, 4) in three dimensions: |m|² + 3 (2 - 1)².
    assert train.frechet_distance(first, second) == pytest.approx(4, abs=0.2)
    assert train.frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    target = data.mixture("ring", train=10, held_out=50)
    assert train.judge(target.held_out.flip(0), target)["emd"] == pytest.approx(0, abs=1e-6)
    assert train.judge(target.held_out + torch.tensor([3.0, 4.0]), target)["emd"] == pytest.approx(5, abs=1e-4)


def test_standard_errors():
    found = train.with_errors([{"emd": 1.0}, {"emd": 2.0}, {"emd": 3.0}])
    assert found == {"emd": 2.0, "emd_se": pytest.approx(1 / math.sqrt(3)), "emd_each": [1.0, 2.0, 3.0]}


def test_training_repeats_and_learns():
    target = data.load("ring")
    training = train.Training(steps=100, batch=64)

    def sampled(training, seeds):
        models, streams = train.train(target, "two-sided", 0.1, training, seeds)
        return models(streams.normal(500, 2))

    short = train.Training(steps=5, batch=64)
    first, other = sampled(short, (0, 1))
    assert torch.equal(first, sampled(short, (0, 1))[0])
    assert not torch.equal(first, other)
    torch.testing.assert_close(other, sampled(short, (1,))[0])
    learned = sampled(training, (0,))[0]
    untrained = sampled(train.Training(steps=0), (0,))[0]
    assert float(untrained.var(dim=0).sum()) == pytest.approx(1, abs=0.2)
    assert train.judge(learned, target)["emd"] < 0.7 * train.judge(untrained, target)["emd"]
    with pytest.raises(ValueError, match="method: 'both'; allowed: one-sided; one-sided, no self-pairs; two-sided"):
        train.train(target, "both", 0.1, training, (0,))


def test_sweep_from_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "load", lambda name: data.mixture(name, held_out=200))
    options = ["--data", "ring", "--temperatures", "0.01", "0.3", "--steps", "20", "--seeds", "2"]
    assert train.main(["--out", str(tmp_path), *options]) == 0
    assert float(torch.tensor(1e-310, dtype=torch.float64) * 1) > 0, "subnormal numbers stay switched off"
    lines = [json.loads(line) for line in (tmp_path / "results" / "drifting.jsonl").read_text().splitlines()]
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == lines
    assert [(line["method"], line["temperature"]) for line in lines] == [
        ("data", None),
        ("one Gaussian", None),
        *((method, temperature) for temperature in (0.01, 0.3) for method in train.METHODS),
    ]
    for line in lines:
        assert (line["experiment"], line["data"], line["seeds"]) == ("drifting", "ring", 2)
        assert line["coverage_se"] >= 0
        assert line["emd_se"] > 0
    one, others, two = lines[2:5]
    assert one["column_error"] > two["column_error"] < 0.05
    assert len({each["emd"] for each in (one, others, two)}) == 3
    text = (tmp_path / "README.md").read_text()
    assert "| 0.01 | two-sided |" in text
    assert "{" not in text
    for name in ("figures", "ring"):
        assert (tmp_path / "images" / f"drifting-{name}.png").stat().st_size > 5000
    (tmp_path / "README.md").unlink()
    assert train.main(["--out", str(tmp_path), "--redraw"]) == 0
    assert (tmp_path / "README.md").read_text() == text
    assert not capsys.readouterr().out
    with pytest.raises(SystemExit):
        train.main(["--seeds", "1"])
    assert "--seeds: 1; allowed: at least 2" in capsys.readouterr().err


def test_differences_are_paired_and_need_to_be_sure():
    def found(method, temperature, coverage, spread):
        each = {"data": "ring", "method": method, "temperature": temperature, "seeds": 3, "train_seconds": 2.0}
        return each | {"coverage": coverage, "coverage_each": [coverage - spread, coverage, coverage + spread]}

    records = [
        # The same ups and downs with every seed: less by 0.5 each time, and by 0.1 with the ups and downs reversed.
        *(found("one-sided", 0.1, 0.5, 0.3), found("one-sided", 1.0, 0.8, -0.1)),
        *(found("one-sided, no self-pairs", 0.1, 0.9, -0.1), found("one-sided, no self-pairs", 1.0, 1.0, 0.0)),
        *(found("two-sided", 0.1, 1.0, 0.3), found("two-sided", 1.0, 0.7, 0.01)),
    ]
    assert report.differences(records).splitlines()[2:] == [
        "| one-sided | class coverage | more |  |",
        "| one-sided | training time | 1.0 times | 1.0 times |",
        "| one-sided, no self-pairs | class coverage |  | less |",
        "| one-sided, no self-pairs | training time | 1.0 times | 1.0 times |",
    ]
    line = "| ring of 8 Gaussians | at no τ | at τ = 1 | at τ = 0.1 |"
    assert report.full_coverage(records).splitlines()[-1] == line
    records[5] |= {"coverage": 1.0}
    line = "| ring of 8 Gaussians | at no τ | at τ = 1 of 1 | at every τ |"
    del records[2]
    assert report.full_coverage(records).splitlines()[-1] == line
    records[0] |= {"seeds": 5}
    found = report.differences(records).splitlines()
    assert found[3] == "| one-sided | training time | not measured | 1.0 times |"
    assert found[4] == "| one-sided, no self-pairs | class coverage | not measured | less |"


def test_digits():
    pytest.importorskip("sklearn", reason="the extra `evidence` isn't installed")
    target = data.load("digits")
    assert target.train.shape == (1198, 64)
    assert float(target.train.var(dim=0).sum()) == pytest.approx(1, abs=0.01)
    found = train.judge(target.held_out, target)
    assert found["coverage"] == 1
    assert found["in_class"] > 0.9
    assert found["entropy"] > 0.99
    assert found["fd"] == pytest.approx(0, abs=1e-9)
    ignorant = train.Sweep(target, train.Training(), 2)
    ignorant.ignorance()
    assert ignorant.records[0]["fd"] < 0.05
    assert ignorant.records[0]["in_class"] < found["in_class"] - 0.2
    pixels = target.restore(target.held_out)
    assert pixels.shape == (599, 8, 8)
    assert pixels.min() == pytest.approx(0, abs=1e-4)
    assert pixels.max() == pytest.approx(16, abs=1e-4)
