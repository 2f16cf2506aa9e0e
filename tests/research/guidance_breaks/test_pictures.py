"""Classifier guidance on the embedded model: the reward, the guided prediction, and what is measured."""

import json
import math

import pytest
import torch

from asag.lab.embedded import drawings, quality, shipped
from asag.lab.embedded.classifier import object_count, present
from research.guidance_breaks import pictures, pictures_page, report
from research.guidance_breaks.pictures import Cell, Judge, Sampler, Size


@pytest.fixture(scope="module")
def judge():
    classifier = shipped.load_classifier()
    return Judge(classifier, classifier, drawings=60)


@pytest.fixture(scope="module")
def sampler():
    return Sampler(shipped.load_unet(), shipped.load_classifier())


def test_reward_is_the_probability_of_all_answers(judge):
    drawn = quality.captions_for(12, 3)
    with torch.no_grad():
        logits = judge.classifier(drawn.images).double()
        found = pictures.log_reward(judge.classifier, drawn.images, drawn.labels)
    there = present(drawn.labels)
    for row in range(12):
        expected = 1.0
        for pair in range(drawings.PAIRS):
            chance = torch.sigmoid(logits[row, pair])
            expected *= chance if there[row, pair] else 1 - chance
        expected *= torch.softmax(logits[row, drawings.PAIRS :], 0)[object_count(drawn.labels)[row]]
        assert found[row].item() == pytest.approx(math.log(expected), rel=1e-4, abs=1e-5)
    swapped = pictures.log_reward(judge.classifier, drawn.images, drawn.labels.roll(1, 0))
    assert (swapped < found - 1).all()


def test_guided_prediction_moves_the_clean_picture_by_tweedie(sampler):
    """x̂₀ = (x + (1-a²) s) / a: a push G in the score moves it by (1-a²)/a · G, and ∇log r is a gradient in x."""
    labels, signal, timestep = quality.captions_for(3, 0).labels, 0.8, torch.tensor(500)
    x = shipped.start_noise(3, 1)
    pushes = []

    def rule(moment):
        pushes.append(moment)
        return 2.0 * moment.gradient

    embeds = shipped.null_embeds(3)
    velocity, lengths = sampler._guided(rule, x, timestep, embeds, labels, 2.0, signal)
    (moment,) = pushes
    with torch.no_grad():
        plain = sampler.unet(x, timestep, embeds).sample

    def clean(prediction):
        return signal * x - 0.6 * prediction

    push = 2.0 * moment.gradient.view_as(x)
    torch.testing.assert_close(clean(velocity) - clean(plain), 0.36 / 0.8 * push, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close((moment.x + 0.36 * moment.score) / 0.8, clean(plain).flatten(1), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(lengths, push.flatten(1).norm(dim=1))

    def reward(shift):
        with torch.no_grad():
            predicted = sampler.unet(x + shift, timestep, embeds).sample
            images = drawings.from_latents(signal * (x + shift) - 0.6 * predicted)
            return pictures.log_reward(sampler.guide, images, labels)

    direction = moment.gradient / moment.gradient.norm(dim=1, keepdim=True)
    step = 1e-2 * direction.view_as(x)
    slope = (reward(step) - reward(-step)) / 2e-2
    torch.testing.assert_close(slope, moment.gradient.norm(dim=1), rtol=0.05, atol=1e-3)


def test_adaptive_push_is_about_as_long_as_its_scale():
    rule = pictures.rule_of(Cell("adaptive", 30.0))
    gradient = torch.randn(4, 3072, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.1], [1], [5], [50]])
    moment = pictures.Moment(gradient, gradient, gradient, 30.0, 0.5, 1.0)
    torch.testing.assert_close(rule(moment).norm(dim=1), torch.full((4,), 30.0), rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match="allowed: captions"):
        pictures.rule_of(Cell("magic"))


def test_guidance_raises_the_reward_and_zero_scale_changes_nothing(sampler):
    labels = quality.captions_for(6, 2).labels

    def images(*cell):
        latents, pushes = sampler(Cell(*cell, steps=6), labels, 0)
        return shipped.to_images(latents), pushes

    unguided, none = images("unguided")
    zero, _ = images("fixed", 0.0)
    guided, pushes = images("fixed", 3.0)
    torch.testing.assert_close(zero, unguided)
    assert none.eq(0).all()
    assert pushes.gt(0).all()
    before, after = (pictures.log_reward(sampler.guide, each, labels).mean() for each in (unguided, guided))
    assert after > before + 1


def test_judge_by_hand(judge):
    drawn = quality.captions_for(40, 9)
    found = judge.measures(drawings.to_latents(drawn.images), drawn.labels, 2)
    assert found["objects_right"] > 0.9
    assert found["contrast"] == pytest.approx(1, abs=0.1)
    assert found["diversity"] == pytest.approx(1, abs=0.1)
    assert found["diverged"] == 0
    alike = drawings.to_latents(drawn.images[::2].repeat_interleave(2, 0))
    collapsed = judge.measures(alike, drawn.labels, 2)
    assert collapsed["diversity_within"] == pytest.approx(0, abs=1e-4)
    alike[0, 0, 0, 0], alike[1] = float("nan"), 1.2
    assert judge.measures(alike, drawn.labels, 2)["diverged"] == pytest.approx(2 / 40)
    noise = judge.measures(drawings.to_latents(torch.rand_like(drawn.images) * 2 - 1), drawn.labels, 2)
    assert noise["distance"] > 10 * abs(found["distance"])


def test_kernel_distance_is_unbiased_and_exact_on_two_points():
    a, b = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    # (x·y/2 + 1)³: 1 between the points of each set; across, 1.5³ with (1, 1) and 1 with (0, 0).
    assert pictures.kernel_distance(a, b) == pytest.approx(1 + 1 - 2 * (1.5**3 + 1) / 2)
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(2, 20, 8, generator=generator) for _ in range(200)]
    found = torch.tensor([pictures.kernel_distance(*pair) for pair in draws])
    assert abs(found.mean()) < 3 * found.std() / math.sqrt(200)


def test_the_section_holds_what_was_measured(tmp_path, monkeypatch):
    """A tiny run, with few steps: strict JSON, a row for each cell, both figures."""
    cells = [Cell(cell.method, cell.scale, cell.schedule, cell.clipped, steps=2) for cell in pictures.CELLS]
    monkeypatch.setattr(pictures, "trained_guide", lambda steps: shipped.load_classifier())
    monkeypatch.setattr(pictures, "accuracy", lambda *arguments: 1.0)
    lines = tmp_path / "lines.jsonl"
    size = Size(captions=2, group=2)
    report.run_pictures(lines, tmp_path / "sheet.png", range(2), size, cells)
    records = report.read_lines(lines)
    assert len(records) == 1 + len(cells)
    assert json.loads(lines.read_text().splitlines()[1])["metrics"]["objects_right"][1] >= 0
    page = pictures_page.section(records)
    assert page.count("\n| ") >= len(cells)
    assert "91.5" in page
    pictures_page.trade(records).savefig(tmp_path / "trade.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="at least 2"):
        next(pictures.run([0], size, cells))
