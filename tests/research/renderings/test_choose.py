"""The search: what is measured of pictures, and the rule."""

from __future__ import annotations

import pytest
import torch

from asag.lab.renderings.judge import Judge
from research.renderings import choose


class Sure(Judge):
    """A judge that says logits of our own."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__({"red heart": "symbols", "tiger face": "animals & nature"})
        self.logits = logits

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.logits, self.logits


def line(log_probability: float, burnt: float, **settings: object) -> dict[str, object]:
    return {"settings": settings, "samples": 64, "log_probability": log_probability, "right": 0.5, "burnt": burnt}


LINES = [
    line(-2.0, 0.01),
    line(-1.0, 0.02, method="asag", blocks="all", scale=1.0),
    line(-1.5, 0.014, method="asag", blocks="mid", scale=1.0),
    line(-1.8, 0.001, method="asag", blocks="mid", scale=0.5),
]


def test_of_pictures_the_asked_names_probability_and_the_burnt_values_are_measured() -> None:
    judge = Sure(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    images = torch.zeros(2, 3, 64, 64)
    images[0, :, :16] = 1.0
    found = choose.measured(judge, images, ["red heart", "tiger face"])
    own, other = 1 / (1 + torch.exp(torch.tensor(-1.0))), 1 / (1 + torch.exp(torch.tensor(1.0)))
    assert found["log_probability"] == pytest.approx(float((own.log() + other.log()) / 2))
    assert found["right"] == 0.5
    assert found["burnt"] == 0.125


def test_the_rule_takes_the_most_probable_names_among_what_does_not_burn() -> None:
    assert choose.chosen(LINES, "asag")["settings"] == {"method": "asag", "blocks": "mid", "scale": 1.0}
    with pytest.raises(ValueError, match=r"method: pag; allowed: .* 0\.0150"):
        choose.chosen(LINES, "pag")


def test_the_page_marks_what_was_chosen() -> None:
    page = choose.page(LINES)
    assert "| CFG alone |  |  | -2.000 | 0.500 | 0.0100 |  |" in page
    assert "| asag | mid | 1.0 | -1.500 | 0.500 | 0.0140 | yes |" in page
    assert page.count("yes") == 1


def test_cfg_alone_comes_first_and_all_scales_are_relative_to_it() -> None:
    first, *others = choose.candidates()
    assert first == {}
    assert {each["unit"] for each in others} == {"cfg"}
    assert len(others) == len(choose.METHODS) * len(choose.BLOCKS) * len(choose.SCALES)
