"""Augmentation, pixel by pixel on drawings whose colours are known."""

import pytest
import torch

from asag.lab.renderings import pictures
from asag.lab.renderings.pictures import Pictures, background
from tests.lab.renderings.standins import RGB

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def drawn(renderings):
    return Pictures(renderings, CPU)


def row_of(renderings, name):
    return torch.tensor([[rendering.name for rendering in renderings].index(name)])


def test_a_plain_picture_is_the_rendering_over_one_grey(renderings, drawn):
    picture = drawn.plain(row_of(renderings, "blue circle"), value=0.5)[0]
    blue = torch.tensor(RGB["blue"]) / 127.5 - 1
    assert torch.allclose(picture[:, 32, 32], blue, atol=1e-5)
    assert torch.allclose(picture[:, 0, 0], torch.zeros(3), atol=1e-6)


def test_pictures_are_a_function_of_the_generator_and_differ(renderings, drawn):
    rows = row_of(renderings, "red heart").expand(6)
    first, again = (drawn.draw(rows, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (6, 3, pictures.SIDE, pictures.SIDE)
    assert first.abs().max() <= 1 + 1e-6
    assert first.flatten(1).unique(dim=0).shape[0] == 6


def test_half_of_those_with_a_mirror_image_are_mirrored_and_none_of_the_others(renderings, drawn):
    generator = torch.Generator().manual_seed(0)
    faces = drawn.draw(row_of(renderings, "grinning face").expand(200), generator)
    red_at_the_right = (faces[:, 0, 32, 40] > faces[:, 2, 32, 40]).float().mean()
    assert 0.35 < red_at_the_right < 0.65
    drawn.mirrors = torch.zeros_like(drawn.mirrors)
    faces = drawn.draw(row_of(renderings, "grinning face").expand(50), generator)
    assert (faces[:, 0, 32, 20] > faces[:, 2, 32, 20]).all()
    drawn.mirrors = torch.tensor([rendering.mirrors for rendering in renderings])


def test_a_named_colour_stays_and_another_turns_at_the_same_luma(renderings, drawn):
    generator = torch.Generator().manual_seed(1)
    centre = drawn.draw(row_of(renderings, "red square").expand(20), generator)[:, :, 32, 32]
    assert torch.allclose(centre, torch.tensor(RGB["red"]) / 127.5 - 1, atol=1e-5)
    drawn.tinted = torch.ones_like(drawn.tinted)
    turned = drawn.draw(row_of(renderings, "green square").expand(20), generator)[:, :, 32, 32]
    drawn.tinted = torch.tensor([not rendering.names_colour for rendering in renderings])
    luma = torch.tensor([0.299, 0.587, 0.114])
    assert turned.std(0).max() > 0.05
    # Turned colours may leave the cube and be cut, which is all that changes luma.
    assert torch.allclose(turned @ luma, (torch.tensor(RGB["green"]) / 127.5 - 1) @ luma, atol=0.05)


def test_backgrounds_are_neither_black_nor_white():
    u = torch.tensor([[0.0] * 4, [1.0] * 4, [0.5, 0.0, 1.0, 0.5]])
    wanted = [[0.2] * 3, [0.95] * 3, [0.3875, 0.7625, 0.575]]
    assert torch.allclose(background(u), torch.tensor(wanted))
