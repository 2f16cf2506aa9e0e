"""What all families share: the grid of tokens, heads apart and together, masks, and how a model is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from asag.models.base import (
    TokenGrid,
    UnsupportedModel,
    family_of,
    has_class,
    head_count,
    join_heads,
    masks_nothing,
    split_heads,
)


@pytest.mark.parametrize(
    ("x", "context", "expected"),
    [
        ((2, 4, 6, 8), (2, 77, 16), ((6, 8), 1, 77)),
        ((2, 4, 3, 6, 8), (2, 1, 77, 16), ((6, 8), 3, 77)),
        ((2, 4, 6, 8), None, ((6, 8), 1, 0)),
    ],
)
def test_a_call_of_the_model_tells_sizes(x: Any, context: Any, expected: Any) -> None:
    grid = TokenGrid((1, 1), 9, 9)
    grid.enter(torch.zeros(x), None if context is None else torch.zeros(context))
    assert (grid.latent_size, grid.frames, grid.text_tokens) == expected


@pytest.mark.parametrize(
    ("size", "frames", "patch", "tokens"),
    [((6, 8), 1, 1, 48), ((6, 8), 1, 2, 12), ((5, 7), 1, 2, 12), ((5, 8), 3, 2, 36), ((5, 7), 1, 4, 4)],
)
def test_image_tokens_are_patches_over_all_frames(size: Any, frames: int, patch: int, tokens: int) -> None:
    assert TokenGrid(size, frames).image_tokens(patch) == tokens


def test_without_a_size_there_is_no_number_of_tokens() -> None:
    with pytest.raises(ValueError, match="latent_size: None; allowed: the size of the latents"):
        TokenGrid().image_tokens(2)
    assert TokenGrid().grid(12) is None


@pytest.mark.parametrize(
    ("size", "tokens", "grid"),
    [
        ((64, 96), 6144, (64, 96)),
        ((64, 96), 1536, (32, 48)),
        ((64, 96), 24, (4, 6)),
        ((65, 97), 1617, (33, 49)),
        ((2, 1), 1, (1, 1)),
        ((1, 2), 1, (1, 1)),
        ((64, 96), 25, None),
        ((64, 96), 0, None),
        ((64, 96), 6145, None),
    ],
)
def test_the_grid_of_tokens_is_the_latents_halved(size: Any, tokens: int, grid: Any) -> None:
    assert TokenGrid(size).grid(tokens) == grid


def test_heads_apart_are_views_and_together_again_the_same() -> None:
    tensor = torch.arange(2 * 3 * 8.0).view(2, 3, 8)
    split = split_heads(tensor, 2)
    assert split.shape == (2, 2, 3, 4)
    for batch, head, token, feature in torch.cartesian_prod(*map(torch.arange, split.shape)).tolist():
        assert split[batch, head, token, feature] == tensor[batch, token, 4 * head + feature]
    assert split.data_ptr() == tensor.data_ptr()
    assert torch.equal(join_heads(split), tensor)


@pytest.mark.parametrize(
    ("mask", "nothing"),
    [
        (None, True),
        (torch.tensor([True, True]), True),
        (torch.tensor([True, False]), False),
        (torch.tensor([False, False]), False),
        (torch.tensor([0.0, 0.0]), True),
        (torch.tensor([0.0, -1.0]), False),
    ],
)
def test_masks_that_change_nothing(mask: Any, nothing: bool) -> None:
    assert masks_nothing(mask) is nothing


@pytest.mark.parametrize("name", ["heads", "n_heads", "num_heads", "n_local_heads"])
def test_heads_are_counted_by_the_module_or_what_is_in_it(name: str) -> None:
    inner: Any = nn.Linear(1, 1)
    outer = nn.Sequential(nn.Identity(), inner)
    assert head_count(outer) is None
    setattr(inner, name, 5)
    assert head_count(outer) == head_count(inner) == 5
    setattr(inner, name, "many")
    assert head_count(outer) is None


class Old:
    """A class that hosts' models are made from."""


class New(Old):
    """One made from it."""


def test_a_model_is_known_by_the_name_of_a_class() -> None:
    assert has_class(New(), "Old")
    assert has_class(New(), "New")
    assert not has_class(Old(), "New")
    first = SimpleNamespace(name="one", matches=lambda model: False)
    second = SimpleNamespace(name="two", matches=lambda model: isinstance(model, Old))
    families: Any = [first, second, SimpleNamespace(name="three", matches=lambda model: True)]
    assert family_of(New(), families) is second  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModel, match=r"model: torch\.nn\.modules\.linear\.Identity; allowed: one, two"):
        family_of(nn.Identity(), families[:2])
