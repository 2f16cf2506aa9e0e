"""The push that is used again: when, and how large it is in each kind of prediction."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from asag.kept_delta import KeptDelta


def random(seed: int) -> Tensor:
    return torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# What a model predicts that sees the picture x0 in x, the level of δ then, and both of the noise schedule's place.
Predict = Callable[[Tensor, Tensor, float], Tensor]


def noise(x: Tensor, picture: Tensor, alpha: float) -> Tensor:
    return (x - math.sqrt(alpha) * picture) / math.sqrt(1 - alpha)


def velocity(x: Tensor, picture: Tensor, alpha: float) -> Tensor:
    return math.sqrt(alpha) * noise(x, picture, alpha) - math.sqrt(1 - alpha) * picture


def flow(x: Tensor, picture: Tensor, sigma: float) -> Tensor:
    """Of x = (1 - σ) x0 + σ ε: ε - x0."""
    return (x - picture) / sigma


def sigma_of(alpha: float) -> float:
    return math.sqrt((1 - alpha) / alpha)


SPACES: dict[str, tuple[Predict, Callable[[float], float], Callable[[float], float]]] = {
    "noise": (noise, lambda alpha: 1.0, sigma_of),
    "velocity": (velocity, lambda alpha: 1 / math.sqrt(alpha), sigma_of),
    "picture": (lambda x, picture, alpha: picture, sigma_of, sigma_of),
    "flow": (flow, lambda sigma: 1.0, lambda sigma: sigma),
    "flow's picture": (lambda x, picture, sigma: picture, lambda sigma: sigma, lambda sigma: sigma),
}


@pytest.mark.parametrize("space", SPACES)
def test_the_picture_is_pushed_alike_whatever_is_predicted(space: str) -> None:
    """The weakened prediction is of another picture; later, of another x, the push moves the picture by that, times σ
    over the σ of then."""
    predict, level, sigma = SPACES[space]
    then, now = (0.2, 0.6) if sigma is sigma_of else (0.8, 0.3)
    picture, weakened, x = random(0), random(1), random(2)
    kept = KeptDelta(2)
    assert not kept.reuses("a call")
    delta = predict(x, picture, then) - predict(x, weakened, then)
    assert kept.keep(delta, level(then)) is delta
    assert kept.reuses("a call")
    later_x, later = random(3), random(4)
    pushed = predict(later_x, later, now) + kept.again(level(now))
    expected = later + sigma(now) / sigma(then) * (picture - weakened)
    torch.testing.assert_close(pushed, predict(later_x, expected, now), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("every", "computed"), [(1, "cccccc"), (2, "crcrcr"), (3, "crrcrr"), (4, "crrrcr")])
def test_every_nth_call_computes(every: int, computed: str) -> None:
    kept = KeptDelta(every)
    for call in computed:
        assert kept.reuses() == kept.reused == (call == "r")
        if call == "c":
            kept.keep(random(0), 1.0)


def test_a_call_that_differs_or_follows_a_pause_computes() -> None:
    kept = KeptDelta(4)
    for like, reused in (("a", False), ("a", True), ("b", False), ("b", True), ("a", False)):
        assert kept.reuses(like) == reused
        if not reused:
            kept.keep(random(0), 1.0)
    kept.forget()
    assert not kept.reuses("a")
    # A call that was to compute and couldn't: the next one does.
    assert not kept.reuses("a")


def test_without_need_nothing_is_kept_and_a_misuse_says_so() -> None:
    kept = KeptDelta(1)
    kept.keep(random(0), 1.0)
    with pytest.raises(RuntimeError, match="no δ was kept"):
        kept.again(1.0)


def test_the_dtype_stays() -> None:
    kept = KeptDelta(2)
    kept.keep(torch.full((2, 1, 1, 1), 3.0, dtype=torch.float16), torch.full((2, 1, 1, 1), 1.5))
    assert kept.again(torch.tensor(2.0)).dtype == torch.float16
    assert kept.again(2.0).flatten().tolist() == [4.0, 4.0]
