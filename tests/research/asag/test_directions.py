"""Where methods push: what is found of pushes that are known, and that nothing is left in the model."""

import pytest
import torch

from research.asag.cells import METHODS
from research.asag.directions import compare, measure
from research.asag.sampling import Sampler
from research.asag.sweeps import BLOCKS
from tests.support import snapshot


def test_of_a_push_along_the_picture_all_is_contrast_and_nothing_is_left_beyond():
    generator = torch.Generator().manual_seed(0)
    picture, other = torch.randn(2, 4, 3, 8, 8, generator=generator)
    contrast = picture - picture.mean(dim=(1, 2, 3), keepdim=True)
    other = other - other.mean(dim=(1, 2, 3), keepdim=True)
    other -= (other * contrast).sum((1, 2, 3), keepdim=True) / contrast.square().sum((1, 2, 3), keepdim=True) * contrast
    other *= contrast.norm() / other.norm()
    found = compare(0.1 * contrast, contrast, picture + 5.0)
    assert found["contrast"] == pytest.approx(1, abs=1e-3)
    assert found["size"] == pytest.approx(0.1 * float(contrast.square().mean().sqrt()), rel=1e-3)
    mixed = compare(contrast + other, other, picture)
    assert mixed["contrast"] == pytest.approx(0.5**0.5, abs=0.05)
    assert mixed["to_asag"] == pytest.approx(0.5**0.5, abs=0.05)
    assert mixed["to_asag_beyond"] == pytest.approx(1, abs=1e-3)


def test_every_method_and_block_is_looked_at_in_every_step_and_the_model_stays_as_it_was():
    sampler = Sampler()
    network = sampler.pipeline("unet").unet
    before = snapshot(network)
    lines = measure(sampler, "unet", pictures=2, steps=2)
    assert snapshot(network) == before
    assert len(lines) == 2 * (len(METHODS) + len(BLOCKS["unet"]))
    found = {(line["step"], line["method"], line["block"]): line for line in lines}
    assert found[0, "asag", "auto"]["to_asag"] == pytest.approx(1)
    assert found[1, "asag", "mid"]["size"] == found[1, "asag", "auto"]["size"]
    assert 0 < found[1, "asag", "out.1"]["size"] != found[1, "asag", "mid"]["size"]
    assert len({line["size"] for line in lines if line["step"] == 1}) == len(METHODS) + len(BLOCKS["unet"]) - 1
