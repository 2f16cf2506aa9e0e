"""What a mask means for joint attention: which rows hold for the image, and what they add to the text's keys."""

from __future__ import annotations

import math

import pytest
import torch

from asag.joint_parts import MaskCheck, text_bias_of, text_of

IMAGE, TOKENS = slice(2, 5), 7
TEXT = [0, 1, 5, 6]


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("rows", [1, IMAGE.stop - IMAGE.start])
def test_hidden_text_is_minus_infinity_and_the_rest_as_it_was(heads: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    like = torch.zeros(2, 3, TOKENS, 4, dtype=torch.float64)
    seen = torch.rand(2, heads, rows, TOKENS, generator=generator) > 0.4
    added = torch.randn(2, heads, rows, TOKENS, generator=generator)
    hidden = torch.where(seen, 0.0, -math.inf).double()[..., TEXT].expand(-1, -1, 3, -1)
    assert torch.equal(text_bias_of(seen, IMAGE, like), hidden)
    assert torch.equal(text_bias_of(added, IMAGE, like), added.double()[..., TEXT].expand(-1, -1, 3, -1))
    assert text_bias_of(None, IMAGE, like) is None


def test_text_lies_before_and_after_the_image() -> None:
    tokens = torch.arange(7)[None]
    assert text_of(tokens, slice(2, 5), 1).tolist() == [[0, 1, 5, 6]]
    assert text_of(tokens, slice(0, 5), 1).tolist() == [[5, 6]]
    assert text_of(tokens, slice(3, 7), 1).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_on_a_cpu_every_mask_is_looked_at(dtype: torch.dtype) -> None:
    """It costs no wait there."""
    check = MaskCheck()
    visible = torch.ones(1, 1, TOKENS, TOKENS) if dtype == torch.bool else torch.zeros(1, 1, TOKENS, TOKENS)
    mask = visible.to(dtype)
    found = check.image_rows(mask, IMAGE)
    assert found is not None
    assert torch.equal(found, mask[:, :, 2:5])
    hiding = mask.clone()
    hiding[0, 0, 3, 4] = False if dtype == torch.bool else -1.0
    with pytest.raises(ValueError, match="mask: hides image tokens from one another"):
        check.image_rows(hiding, IMAGE)
