"""The wrapper around a generation's `sample`."""

from copy import copy, deepcopy

import pytest

from asag.hosts import generation
from asag.hosts.refused import Refused


class Processing:
    def sample(self, seed):
        return seed + 1


@pytest.mark.parametrize("copied", [copy, deepcopy])
def test_a_copy_is_stopped_like_the_original_and_both_are_free_afterwards(copied):
    # X/Y/Z plot and extensions copy `p`; a function would be the same in both.
    p = Processing()
    generation.refuse(p, ValueError("no"))
    other = copied(p)
    assert other.sample is p.sample
    wrapper = p.sample
    with pytest.raises(Refused, match="no"):
        other.sample(1)
    assert p.sample(1) == wrapper(1) == other.sample(1) == 2
    assert not p.__dict__


def test_what_another_extension_had_put_there_comes_back():
    p = Processing()
    p.sample = others = lambda seed: -seed
    generation.refuse(p, ValueError("no"))
    with pytest.raises(Refused, match="no"):
        p.sample(1)
    assert p.__dict__ == {"sample": others}
