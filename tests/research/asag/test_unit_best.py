"""Which scale suits in each unit: what is measured where, and what known FDs and changes come to."""

import pytest
import torch

from asag.hosts.diffusers_models import FAMILIES
from asag.lab.arguments import MODELS
from asag.lab.embedded.architecture import new_unet
from asag.lab.embedded.architecture_mmdit import new_transformer
from asag.models.base import family_of
from asag.perturb import choose_layers
from asag.units import UNITS
from research.asag import evaluate, unit_best, unit_places, unit_single
from research.asag.cells import METHODS
from research.asag.descriptions import Store
from research.asag.sweeps import BLOCKS
from research.asag.unit_best import Point
from research.lines import read_lines, write_lines


def sizes(cfg_scale, block, method, *of):
    return {"guidance_scale": cfg_scale, "block": block, "method": method, "sizes": [[each] for each in of]}


# A push of δ is a fifth of CFG's own in the middle, and a fortieth in `in.3`.
SIZES = [sizes(2.0, "", "cfg", 0.2), sizes(2.0, "mid", "pag", 0.04), sizes(2.0, "in.3", "seg", 0.005)]


@pytest.mark.parametrize("model", MODELS)
def test_each_fifth_has_every_block_at_every_cfg_scale_and_all_methods(model):
    found = unit_places.places(model)
    every = {(scale, block) for scale in unit_places.CFG_SCALES for block in BLOCKS[model]}
    assert len(set(found)) == len(found) == len(every) * len(METHODS)
    for i in range(len(METHODS)):
        fifth = found[i * len(every) : (i + 1) * len(every)]
        assert {place[:2] for place in fifth} == every
        assert {place[2] for place in fifth} == {*METHODS}


def test_the_scales_that_push_as_far_as_cfg_and_one_for_all_places():
    found = unit_places.ones(SIZES)
    assert found[2.0, "mid", "pag"] == {"paper": pytest.approx(5), "push": pytest.approx(0.2), "cfg": 1.0}
    assert found[2.0, "in.3", "seg"] == {"paper": pytest.approx(40), "push": pytest.approx(0.2), "cfg": 1.0}
    three = [{"paper": paper, "push": 0.2, "cfg": 1.0} for paper in (40.0, 5.0, 11.111)]
    assert unit_places.single(three, 0.5) == {"paper": 5.56, "push": 0.1, "cfg": 0.5}


def test_the_best_scale_lies_on_a_parabola_over_its_logarithm():
    """Of FD = 90 + (log10 s)² at 0.1, 3 and 100."""
    points = [Point(scale, 90 + torch.tensor(scale).log10().square().item(), 1) for scale in (0.1, 3.0, 100.0)]
    assert unit_best.best(points) == pytest.approx(1.0, rel=1e-4)
    assert unit_best.best([Point(0.1, 101.0, -1), Point(1.0, 100.0, 0)]) is None
    assert unit_best.best([Point(0.1, 99.0, 1), Point(1.0, 98.0, 1)]) == 1.0


def test_one_scale_for_all_places_is_that_with_the_lowest_mean():
    middle = [Point(1.0, 80.0, 3), Point(10.0, 90.0, 1)]
    of = {("unet", 2.0, "mid", "pag"): middle, ("unet", 2.0, "in.1", "pag"): [Point(0.1, 90.0, 1), Point(1.0, 190, -9)]}
    assert unit_best.at(middle, 0.5) == pytest.approx(90.0)
    assert unit_best.at(middle, 20.0) == 90.0
    scale, fds = unit_best.single(of)
    assert scale == pytest.approx(0.1, rel=0.02)
    assert fds == pytest.approx([98.0, 90.0], rel=0.01)
    line = unit_best.summary("paper", of)
    assert (line["places"], line["better"], line["clear"], line["limits"], line["at_end"]) == (2, 2, 1, 1, 0)
    assert line["own"] == pytest.approx(85.0)
    assert line["loss"] == pytest.approx(9.0, abs=0.5)
    assert line["worst"] == pytest.approx(98.0, abs=0.1)
    assert line["best_clear"]["median"] == 1.0
    assert line["too_much"]["median"] == pytest.approx(0.1 + 0.9 * 35 / 100)
    burning = {place: [Point(1.0, 150.0, -5)] for place in of}
    assert unit_best.single(burning) == (0.0, [100.0, 100.0])
    assert unit_best.summary("cfg", burning)["best"] is None


def test_the_spread_is_the_quotient_of_the_ends_of_the_90_percent_range():
    found = unit_best.apart([10.0**i for i in range(21)])
    assert (found["median"], found["low"], found["high"]) == pytest.approx((1e10, 1e1, 1e19), rel=1e-4)
    assert found["spread"] == pytest.approx(1e18, rel=1e-4)
    assert found["spread_least"] <= found["spread"] * 1.001
    same = unit_best.apart([0.3, 0.3])
    assert [same[name] for name in ("spread", "spread_least", "spread_most")] == pytest.approx([1, 1, 1])


def searched(scale, value, **settings):
    fd = {"value": value, "to_baseline": value - 200, "to_baseline_error": 4.0}
    settings = {"method": "pag", "scale": scale, **settings}
    return {"condition": "conditional", "guidance_scale": 2.0, "settings": settings, "metrics": {"fd": fd}} | {
        "method": settings["method"]
    }


def test_searches_in_the_papers_unit_become_curves_in_each(tmp_path):
    lines = [searched(5.0, 190.0), searched(0.5, 196.0), searched(5.0, 190.0, blocks="mid")]
    lines += [searched(4.0, 260.0, method="seg", blocks="in.3"), searched(1.0, 100.0) | {"condition": "unconditional"}]
    lines += [searched(1.0, 100.0) | {"settings": {}}]
    found = unit_best.curves("unet", lines, SIZES)
    middle, inside = ("unet", 2.0, "mid", "pag"), ("unet", 2.0, "in.3", "seg")
    assert {unit: {*of} for unit, of in found.items()} == {unit: {middle, inside} for unit in UNITS}
    assert found["paper"][middle] == [Point(0.5, 98.0, 1.0), Point(5.0, 95.0, 2.5)]
    assert [each.scale for each in found["push"][middle]] == pytest.approx([0.02, 0.2])
    assert [each.scale for each in found["cfg"][middle]] == pytest.approx([0.1, 1.0])
    assert [each.scale for each in found["cfg"][inside]] == pytest.approx([0.1])
    write_lines(tmp_path / "search-unet.jsonl", lines)
    write_lines(tmp_path / "units-unet.jsonl", SIZES)
    assert unit_best.main(["--out", str(tmp_path)]) == 0
    written = read_lines(tmp_path / "unit-best.jsonl")
    assert [(line["model"], line["unit"], line["places"]) for line in written] == [
        (model, unit, 2) for model in ("unet", "both") for unit in UNITS
    ]
    rows = unit_best.table(written).splitlines()
    assert rows[2].startswith("| `paper` | 2 | 1 (1) | 5 (5 to 5) | 1 (1 to 1) | 1 | ")
    assert rows[-1].startswith("| `cfg` | 2, both models | ")


def test_auto_is_the_block_that_the_models_have_as_their_default():
    for model, network in (("unet", new_unet()), ("mmdit", new_transformer())):
        family = family_of(network, FAMILIES)
        assert choose_layers(network, family, unit_best.AUTO[model]) == choose_layers(network, family, "auto")


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A study of two places, a step and a few pictures."""
    monkeypatch.setattr(unit_single, "places", lambda model: [(2.0, "mid", "pag"), (2.0, "in.3", "seg")])
    monkeypatch.setattr(unit_single, "STEPS", 1)
    monkeypatch.setattr(unit_single, "_PICTURES", 2)
    monkeypatch.setattr(evaluate, "_REFERENCE", 300)
    write_lines(tmp_path / "units-unet.jsonl", SIZES)
    return ["--pushes", "0.5", "--store", str(tmp_path / "store"), "--out", str(tmp_path)]


def test_one_scale_is_sampled_in_every_place_beside_cfg_alone_and_goes_on_where_it_stopped(tiny, tmp_path):
    path = tmp_path / "unit-single-unet.jsonl"
    unit_single.main(tiny)
    lines = read_lines(path)
    places = [line for line in lines if "changes" in line]
    assert [(line["block"], line["method"]) for line in places] == [("mid", "pag"), ("in.3", "seg")]
    assert {line["seed"] for line in places} == {unit_single.part_of(i).seed for i in range(2)}
    assert places[0]["scales"] == {"paper": 2.5, "push": 0.1, "cfg": 0.5}
    pooled = {line["unit"]: line for line in lines if "metrics" in line}
    assert {*pooled} == {*UNITS}
    assert pooled["cfg"]["samples"] == 4
    # The change of a picture, from what was kept of it.
    store, part = Store(tmp_path / "store"), unit_single.part_of(0)
    of = unit_single.runs("unet", (2.0, "mid", "pag"), places[0]["scales"])
    apart = store.read(of["cfg"], [part])["layout"] - store.read(of[""], [part])["layout"]
    assert places[0]["changes"]["cfg"] == pytest.approx(apart.square().mean(1).sqrt().tolist(), rel=1e-3)
    # A line of a place and one of all are still there.
    write_lines(path, [lines[1], lines[-1]])
    unit_single.main(tiny)
    assert read_lines(path) == [lines[1], lines[0], *lines[2:]]
    unit_best.main(["--out", str(tmp_path)])
    found = [line for line in read_lines(tmp_path / "unit-best.jsonl") if line["method"] == "single"]
    assert [(line["model"], line["unit"]) for line in found] == [(m, unit) for m in ("unet", "both") for unit in UNITS]
    medians = [torch.tensor(line["changes"]["paper"]).median().item() for line in places]
    assert found[0]["median"] == pytest.approx((medians[0] * medians[1]) ** 0.5, rel=1e-3)
    assert found[0]["at_one_cfg"] == found[0]["spread"]
    rows = unit_best.sampled_table(found, [*pooled.values()]).splitlines()
    assert rows[2].startswith("| `paper` | 2 | 2.5 | ")
    assert rows[-1].endswith(" |  |  |  |  |")
