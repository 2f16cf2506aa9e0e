"""The metrics: against libraries and formulas, and paired errors against what is known."""

import numpy as np
import pytest
import scipy.linalg
import torch

from asag.lab.embedded import drawings, shipped
from research.asag import metrics
from research.asag.descriptions import describe, spectrum


def normal(count: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    mix = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) / 4 + torch.eye(16)
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed)) @ mix * scale + shift


def test_frechet_distance_is_the_formula_with_scipys_matrix_root():
    a, b = normal(400, 1, 1.3, 0.2), normal(600, 2)
    block = metrics.blocks_of(400, 1)
    found = metrics.Frechet(b)(a, block)

    def direct(a, b):
        root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
        return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)

    a, b = a.double().numpy(), b.double().numpy()
    assert found.value == pytest.approx(direct(a, b), rel=1e-9)
    assert float(found.without[7]) == pytest.approx(direct(a[block.numpy() != 7], b), rel=1e-9)


def test_kernel_distance_is_the_unbiased_estimate_written_out():
    a, b = normal(80, 1, 1.3), normal(60, 2)
    block = metrics.blocks_of(80, 1)
    found = metrics.Kernel(b)(a, block)

    def direct(a, b):
        def kernel(x, y):
            return (x @ y.T / 16 + 1) ** 3

        def own(x):
            return (kernel(x, x).sum() - np.trace(kernel(x, x))) / (len(x) * (len(x) - 1))

        return own(a) + own(b) - 2 * kernel(a, b).mean()

    # Whatever the features' unit: they are divided by the reference's RMS.
    size = b.double().square().mean().sqrt()
    a, b = (a.double() / size).numpy(), (b.double() / size).numpy()
    assert found.value == pytest.approx(direct(a, b), rel=1e-9)
    assert float(found.without[3]) == pytest.approx(direct(a[block.numpy() != 3], b), rel=1e-9)


def test_inception_like_counts_classes_that_are_certain_and_even():
    block = metrics.blocks_of(240, 1)
    even = 50.0 * torch.eye(24).repeat(10, 1)
    assert metrics.inception_like(even, block).value == pytest.approx(24, rel=1e-6)
    assert metrics.inception_like(torch.zeros(240, 24), block).value == pytest.approx(1)


def test_errors_are_those_of_the_mean_and_pairing_takes_the_common_part_away():
    generator = torch.Generator().manual_seed(3)
    common, own = torch.randn(2, 4000, generator=generator)
    block = metrics.blocks_of(4000, 1)
    one, other = metrics.mean(common, block), metrics.mean(common + 0.1 * own + 0.05, block)
    # 40 groups know a standard error to about 11 %.
    assert one.error == pytest.approx(1 / 4000**0.5, rel=0.35)
    difference, error = other.minus(one)
    assert difference == pytest.approx(0.05, abs=0.01)
    assert error == pytest.approx(0.1 / 4000**0.5, rel=0.35)


def test_blocks_hold_the_same_captions_of_every_seed():
    block = metrics.blocks_of(80, 3)
    assert block.bincount().tolist() == [6] * 40
    assert (block.view(3, 80) == block[:80]).all()


def test_diversity_compares_pictures_of_a_caption():
    layout = torch.zeros(3 * 80, 48)
    layout[80:160] = 1.0
    # Of the three pairs two are 1 apart, one is alike.
    assert metrics.diversity(layout, 3, metrics.blocks_of(80, 3)).value == pytest.approx(2 / 3)


def test_a_description_tells_what_is_in_the_picture():
    drawn = drawings.draw(40, torch.Generator().manual_seed(4))
    described = describe(*drawn, shipped.load_classifier())
    assert described["right"].mean() > 0.95
    assert described["layout"][:, 0].allclose(drawn.images[:, 0, :8, :8].mean((1, 2)), atol=1e-6)
    assert torch.equal(described["contrast"], drawn.images.flatten(1).std(1))
    grey = describe(torch.zeros(1, 3, 32, 32), drawn.labels[:1], shipped.load_classifier())
    assert grey["saturation"] == grey["clipped"] == 0
    burnt = describe(torch.ones(1, 3, 32, 32), drawn.labels[:1], shipped.load_classifier())
    assert burnt["clipped"] == 1


def test_the_spectrum_finds_a_wave_in_its_ring():
    wave = torch.cos(torch.arange(32) * 2 * torch.pi * 8 / 32).expand(1, 3, 32, 32)
    # 8 of at most 16 periods: half the highest frequency, the last of the first six rings.
    assert int(spectrum(wave)[0].argmax()) == 5
