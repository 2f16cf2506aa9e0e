"""The search: what is measured of pictures, the rule, and its tables on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from asag.lab.renderings.judge import Judge
from asag.settings import AsagSettings
from research.lines import read_lines
from research.renderings import choose
from tests.lab.renderings import standins, tiny_model


class Sure(Judge):
    """A judge that says logits of our own."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__({"red heart": "symbols", "tiger face": "animals & nature"})
        self.logits = logits

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.logits, self.logits


def line(log_probability: float, burnt: float, **settings: object) -> dict[str, object]:
    about = {"settings": settings, "samples": 64, "guidance_scale": 3.0}
    return about | {"log_probability": log_probability, "right": 0.5, "burnt": burnt}


LINES = [
    line(-2.0, 0.01),
    line(-1.0, 0.02, method="asag", blocks="all", scale=1.0),
    line(-1.5, 0.014, method="asag", blocks="mid", scale=1.0),
    line(-1.8, 0.001, method="asag", blocks="mid", scale=0.5, contrast=0.0),
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
    page = choose.page(LINES, [LINES[2]])
    assert "| 3 | CFG alone |  |  |  |  | -2.000 | 0.500 | 0.0100 |  |" in page
    assert "| 3 | asag | mid | 1 |  |  | -1.500 | 0.500 | 0.0140 | yes |" in page
    assert "| 3 | asag | mid | 0.5 |  | 0 | -1.800 | 0.500 | 0.0010 |  |" in page
    assert page.count("yes") == 1


def test_cfg_alone_comes_first_all_scales_are_relative_to_it_and_no_candidate_comes_twice() -> None:
    first, *others = choose.candidates()
    assert first == {}
    assert {each["unit"] for each in others} == {"cfg"}
    assert len({AsagSettings.from_mapping(each) for each in others}) == len(others) == 50


def test_lower_cfg_is_seen_with_the_same_settings_at_each() -> None:
    cases = choose.cases("low-cfg", [])
    assert [case.cfg for case in cases if not case.settings] == [1.5, 2.0]
    half = len(cases) // 2
    assert [case.settings for case in cases[:half]] == [case.settings for case in cases[half:]]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two candidates, and one method; a random model burns as it will."""

    def candidates() -> Iterator[dict[str, object]]:
        yield {}
        yield choose.given("pag", "mid", 0.25)
        yield choose.given("pag", "mid:aligned", 0.5)

    torch.set_num_threads(1)
    monkeypatch.setattr(choose, "candidates", candidates)
    monkeypatch.setattr(choose, "METHODS", ("pag",))
    monkeypatch.setattr(choose, "STRONG", ("mid",))
    monkeypatch.setattr(choose, "LOW_CFG", (2.0,))
    monkeypatch.setattr(choose, "_MOST_BURNT", 100.0)


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(each) for each in path.read_text().splitlines()]


@pytest.mark.usefixtures("few")
def test_the_command_writes_its_tables_and_measures_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = standins.write(tmp_path / "renderings")
    folder = tiny_model.write_unet(tmp_path / "unet", data)
    options = ["--model", str(folder), "--samples", "3", "--half-size", "--out", str(tmp_path / "out")]
    options += ["--table", "search", "low-cfg", "held-out"]
    monkeypatch.setattr(choose.shipped, "SOLVER_STEPS", 2)
    monkeypatch.setattr(choose, "asked_names", lambda judge, count, seed, left_out: (judge.names[:3], []))
    assert choose.main(options) == 0
    out = tmp_path / "out"
    search, low, held_out = (read(out / f"choose{each}.jsonl") for each in ("", "-low-cfg", "-held-out"))
    assert [each["settings"] for each in search] == list(choose.candidates())
    assert [(each["guidance_scale"], bool(each["settings"])) for each in low] == [(2.0, False), (2.0, True)]
    assert [each["settings"] for each in held_out] == [{}, choose.chosen(search, "pag")["settings"]]
    assert capsys.readouterr().out.count("CFG alone") == 3
    assert (out / "choose.md").read_text().count("yes") == 1
    monkeypatch.setattr(choose, "measured", lambda *given: pytest.fail("there already"))
    assert choose.main(options) == 0
    assert read(out / "choose.jsonl") == search


def test_the_published_search_is_the_rules():
    """Of all settings, with the marks that the rule gives them; what the page says of CFG alone holds."""
    path = Path(choose.__file__).parent / "results" / "choose.jsonl"
    lines = read_lines(path)
    assert [each["settings"] for each in lines] == list(choose.candidates())
    best = choose.best_of(lines)
    assert path.with_suffix(".md").read_text() == choose.page(lines, best) + "\n"
    chosen = [(each["settings"]["method"], each["settings"]["blocks"], each["settings"]["scale"]) for each in best]
    assert chosen == [("pag", "all", 0.25), ("seg", "mid", 0.25), ("asag", "in.3", 0.25)]
    above = [each for each in lines if each["log_probability"] > lines[0]["log_probability"]]
    assert [each["settings"]["method"] for each in above] == ["pag"] * 4
    highest = max(each["log_probability"] for each in above) - lines[0]["log_probability"]
    assert f"by {highest:.3f} at most" in " ".join((path.parents[1] / "README.md").read_text().split())
