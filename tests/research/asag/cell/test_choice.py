"""The place that a fingerprint chooses, on made-up fingerprints."""

import pytest

from research.asag.cell.choice import Choice, choose
from research.asag.cell.fingerprint import SWEEPS


def line(block, head, asag, opposite, cosine=0.8, size=0.5):
    figures = dict.fromkeys(SWEEPS, 3.0) | {"adversarial 0.001": asag, "similarity 0.001": opposite}
    return {"block": block, "head": head, "cosine": cosine, "to_uniform": 0.9, "size": size, **figures}


def layer(block, *heads, size=0.5):
    """The whole layer's line, with the means of its heads, and theirs."""
    whole = [sum(each[i] for each in heads) / len(heads) for i in range(2)]
    own = [line(block, number, *each) for number, each in enumerate(heads)]
    return [line(block, None, *whole, size=size), *own]


def test_the_layer_with_most_heads_that_have_the_fingerprint_is_chosen_with_these_heads():
    lines = [
        *layer("mid.0", (2, 10), (4, 5), (3, 4)),
        *layer("out.0.0", (2, 5), (2, 3), (3, 8)),
        *layer("in.3.0", (4, 4)),
    ]
    assert choose(lines) == Choice("out.0.0", (0, 2), True)
    assert choose(lines).blocks == "out.0.0:h0,2"


def test_of_layers_with_as_many_the_larger_ratio_is_chosen():
    lines = [*layer("mid.0", (2, 5), (4, 4)), *layer("mid.1", (2, 9), (4, 4))]
    assert choose(lines) == Choice("mid.1", (0,), True)


def test_heads_whose_queries_and_keys_do_not_agree_do_not_have_it():
    lines = [*layer("mid.0", (2, 9), (4, 5)), *layer("mid.1", (3, 4), (3, 3))]
    lines[1]["cosine"] = 0.4
    assert choose(lines) == Choice("mid.0", (0,), False)


def test_where_no_head_has_it_the_nearest_layer_is_chosen_with_its_heads_above_the_layers_own_ratio():
    lines = [*layer("mid.0", (10, 13), (10, 11), (10, 15)), *layer("mid.1", (10, 11), (10, 12))]
    assert choose(lines) == Choice("mid.0", (0, 2), False)


def test_noise_levels_are_averaged():
    lines = [*layer("mid.0", (2, 3), (4, 4)), *layer("mid.0", (2, 7), (4, 4))]
    assert choose(lines) == Choice("mid.0", (0,), True)


def test_layers_that_hardly_push_are_left_out_and_one_has_to_push():
    weak = layer("mid.0", (2, 10), (2, 10), size=0.009)
    assert choose([*weak, *layer("mid.1", (4, 5), (4, 4))]).block == "mid.1"
    with pytest.raises(ValueError, match="no layer of the fingerprint pushes"):
        choose(weak)
