"""Calibration: scales of equal push, and the best settings of the searches."""

import pytest

from asag.hosts.diffusers_pipeline import asag_guidance
from asag.lab.embedded import shipped
from research.asag import plans
from research.asag.calibration import (
    calibrate,
    calibrate_chosen,
    calibrate_high,
    calibrate_rivals,
    choose_best,
    choose_plain,
    choose_strong,
    matched,
    push,
)
from research.asag.cells import METHODS, baseline, guided
from research.asag.found_scales import Scales
from research.asag.plans import main_plan
from research.asag.sampling import Run, Sampler
from research.lines import write_lines


def searched(method, settings, fd, condition="unconditional"):
    """A line of a search."""
    return {
        "condition": condition,
        "method": method,
        "settings": settings,
        "samples": 500,
        "metrics": {"fd": {"value": fd}},
    }


def test_the_push_is_how_far_a_step_moves_the_prediction(monkeypatch):
    monkeypatch.setattr("research.asag.calibration._PICTURES", 2)
    sampler, null, kept = Sampler(), shipped.null_embeds(2), []
    pipeline = sampler.pipeline("unet")
    handle = pipeline.unet.register_forward_hook(lambda module, args, output: kept.append(output[0].clone()))
    for scale in (0.0, 2.0):
        with asag_guidance(pipeline, scale=scale):
            noise = shipped.start_noise(2, 102)
            shipped.sample_from(pipeline, null, null, noise, guidance_scale=1.0, num_inference_steps=1)
    handle.remove()
    moved = (kept[1] - kept[0]).square().mean((1, 2, 3)).sqrt().mean()
    assert moved > 0.001
    assert push(sampler, Run.of("unet", False, {"scale": 2.0}, steps=1)) == pytest.approx(float(moved), rel=1e-4)


def test_calibration_makes_pushes_equal(tmp_path, monkeypatch):
    monkeypatch.setattr("research.asag.calibration._PICTURES", 2)
    monkeypatch.setattr("research.asag.calibration.METHODS", ("pag", "asag"))
    monkeypatch.setattr("research.asag.cells.CFG", 1.0)
    scales, sampler = Scales(tmp_path / "scales.json"), Sampler()
    calibrate(sampler, "unet", scales, steps=5)
    found = scales.get("unet", "unconditional", "norm")["pag"]
    base = baseline("unet", False, steps=5)
    sizes = [push(sampler, guided(base, s)) for s in ({"method": "pag", "scale": found}, {"scale": 1.5})]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.03)


@pytest.mark.parametrize("power", [0.2, 1.0, 2.5])
def test_scales_are_found_however_fast_pushes_grow_with_them(power, monkeypatch):
    monkeypatch.setattr("research.asag.calibration.push", lambda sampler, run: dict(run.settings)["scale"] ** power)
    found = matched(Sampler(), baseline("unet", False), {}, 4.0**power, 1.5)
    assert found**power == pytest.approx(4.0**power, rel=0.01)


def test_the_best_scale_is_the_one_with_the_lowest_distance_once_all_are_searched(tmp_path):
    path = tmp_path / "search-unet.jsonl"
    distances = enumerate((5.0, 4.0, 6.0, 7.0, 8.0, 9.0), 1)
    lines = [searched("pag", {"method": "pag", "scale": scale}, fd, "conditional") for scale, fd in distances]
    write_lines(path, [*lines, searched("asag", {"method": "asag", "scale": 3.0}, 9.0, "conditional")])
    choose_best(path, "unet", Scales(tmp_path / "scales.json"))
    assert Scales(tmp_path / "scales.json").get("unet", "conditional", "best") == {"pag": 2.0}


def test_adaptive_scales_are_found_that_push_as_far(tmp_path, monkeypatch):
    monkeypatch.setattr("research.asag.calibration._PICTURES", 2)
    monkeypatch.setattr("research.asag.calibration.HIGH", (3.0,))
    monkeypatch.setattr("research.asag.cells.CFG", 1.0)
    scales, sampler = Scales(tmp_path / "scales.json"), Sampler()
    calibrate_high(sampler, "unet", scales, steps=4)
    base = baseline("unet", True, steps=4)
    aim = push(sampler, guided(base, {"scale": 3.0}))
    for name, scale in scales.get("unet", "conditional", "push of 3").items():
        found = push(sampler, guided(base, {**plans.RESTRAINED[name], "scale": scale}))
        assert found == pytest.approx(aim, rel=0.011)
    scales.put("unet", "unconditional", "push of 7", {"adaptive": 0.5})
    adaptive = [cell for cell in plans.adaptive_plan("unet", scales).cells if cell.rival]
    fixed = {(cell.condition, dict(cell.rival.settings)["scale"]) for cell in adaptive}
    assert fixed == {("conditional", 3.0), ("unconditional", 3.0), ("unconditional", 7.0)}


def test_rivals_push_as_far_as_asag_does_at_its_best_in_the_same_block(tmp_path, monkeypatch):
    monkeypatch.setattr("research.asag.calibration._PICTURES", 2)

    def without(block, scale, fd):
        return searched("asag", {"blocks": block, "scale": scale, "contrast": 0.0}, fd)

    others = [
        searched("asag", {"blocks": "mid", "scale": 9.0}, 0.5),
        searched("asag", {"scale": 8.0, "contrast": 0.5}, 0.5),
    ]
    mids = [without("mid", 1.0, 3.0), without("mid", 2.0, 2.0)]
    write_lines(tmp_path / "contrast-unet.jsonl", [*others, *mids, without("out.0", 1.0, 4.0)])
    scales, sampler = Scales(tmp_path / "scales.json"), Sampler()
    calibrate_rivals(sampler, "unet", scales, steps=4)
    plan = plans.rivals_plan("unet", scales)
    found = [(cell.method, dict(cell.run.settings)) for cell in plan.cells if cell.run.settings]
    methods = [name for name in METHODS if name != "asag"]
    in_block = {
        block: [method for method, settings in found if settings["blocks"] == block] for block in ("mid", "out.0")
    }
    assert in_block == {"mid": ["asag", *methods, *["asag"] * 5], "out.0": ["asag", *methods]}
    assert found[0][1]["scale"] == 2.0
    base = baseline("unet", False, steps=4)
    for cell in [cell for cell in plan.cells if cell.rival]:
        settings, rival = dict(cell.run.settings), dict(cell.rival.settings)
        assert {settings["contrast"], rival["contrast"]} == {0.0}
        assert settings["blocks"] == rival["blocks"]
        sizes = [push(sampler, guided(base, each)) for each in (settings, rival)]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.011)
    assert plan.captions_seed == plans.search_plan("unet", scales).captions_seed


def test_the_best_settings_of_all_searches_are_measured_again_beside_others_that_push_as_far(tmp_path, monkeypatch):
    monkeypatch.setattr("research.asag.calibration._PICTURES", 2)

    write_lines(tmp_path / "search-unet.jsonl", [searched("pag", {"method": "pag", "scale": 1.0}, 1.0)])
    write_lines(tmp_path / "strength-unet.jsonl", [searched("asag", {"strength": 2.0}, 4.0)])
    write_lines(tmp_path / "window-unet.jsonl", [searched("asag", {"end": 0.5, "strength": 0.5, "scale": 1.0}, 3.0)])
    scales, sampler = Scales(tmp_path / "scales.json"), Sampler()
    calibrate_chosen(sampler, "unet", scales, steps=4)
    best = {"method": "asag", "end": 0.5, "strength": 0.5, "scale": 1.0}
    assert scales.get("unet", "unconditional", "chosen") == best
    assert not scales.get("unet", "conditional", "chosen")
    base = baseline("unet", False, steps=4)
    aim = push(sampler, guided(base, best))
    main, confirm = main_plan("unet", scales), plans.confirm_plan("unet", scales)
    assert (confirm.captions, confirm.seeds, confirm.captions_seed) == (main.captions, main.seeds, main.captions_seed)
    others = [name for name in METHODS if name != "asag"]
    assert [cell.method for cell in confirm.cells] == ["vanilla", *others, "paper plan", "asag"]
    for cell in confirm.cells[1:-1]:
        settings = dict(cell.run.settings)
        assert settings.keys() == {"method", "end", "scale"}
        assert settings["method"] == {"paper plan": "asag"}.get(cell.method, cell.method)
        assert settings["end"] == 0.5
        assert push(sampler, guided(base, settings)) == pytest.approx(aim, rel=0.011)
        assert dict(cell.rival.settings) == best
    plain = plans.plain_plan("unet", scales)
    assert [cell.run.settings for cell in plain.cells] == [cell.run.settings for cell in confirm.cells]
    assert {(cell.run.conditional, cell.run.guidance_scale) for cell in plain.cells} == {(True, 1.0)}


def test_the_papers_plan_is_no_rival_of_itself(tmp_path, monkeypatch):
    monkeypatch.setattr("research.asag.calibration._PICTURES", 2)
    settings = {"end": 0.5, "scale": 1.0, "strength": 1.0}  # the paper's strength, said in so many words
    write_lines(tmp_path / "strength-unet.jsonl", [searched("asag", settings, 1.0)])
    scales = Scales(tmp_path / "scales.json")
    calibrate_chosen(Sampler(), "unet", scales, steps=4)
    assert scales.get("unet", "unconditional", "chosen norm").keys() == {*METHODS} - {"asag"}
    assert "paper plan" not in {cell.method for cell in plans.confirm_plan("unet", scales).cells}


def test_beside_a_stronger_cfg_each_method_is_measured_at_its_best_of_a_search(tmp_path):
    scales, path = Scales(tmp_path / "scales.json"), tmp_path / "strong-search-unet.jsonl"
    scales.put("unet", "conditional", "norm", {"pag": 0.8, "asag": 1.5})
    cells = plans.strong_search_plan("unet", scales).cells
    assert {(cell.run.conditional, cell.run.guidance_scale) for cell in cells} == {(True, 4.0)}
    found = [(cell.method, dict(cell.run.settings)) for cell in cells]
    lines = [searched(name, each, abs(each.get("scale", 0) - 3.0), "conditional") for name, each in found]
    write_lines(path, lines[:-1])  # without ASAG's last
    choose_strong(path, "unet", scales)
    assert scales.get("unet", "conditional", "strong") == {"pag": 3.2}
    write_lines(path, lines)
    choose_strong(path, "unet", scales)
    assert scales.get("unet", "conditional", "strong") == {"pag": 3.2, "asag": 3.0}
    best = [cell for cell in plans.strong_plan("unet", scales).cells if cell.protocol == "best"]
    assert [(cell.method, dict(cell.run.settings)["scale"]) for cell in best] == [("pag", 3.2), ("asag", 3.0)]
    assert {dict(cell.rival.settings)["scale"] for cell in best} == {3.0}


def test_each_method_is_measured_at_its_best_without_cfg_once_all_were_searched(tmp_path):
    scales, path = Scales(tmp_path / "scales.json"), tmp_path / "plain-search-unet.jsonl"
    searched_cells = plans.plain_search_plan("unet", scales).cells
    # The higher the number the lower FD; the last PAG keeps its contrast, the last ASAG is the weaker one.
    lines = [searched(cell.method, dict(cell.run.settings), -float(i)) for i, cell in enumerate(searched_cells)]
    write_lines(path, [*lines[:-1], lines[-1] | {"samples": 750}])
    choose_plain(path, "unet", scales)
    assert not plans.plain_plan("unet", scales).cells
    write_lines(path, lines)
    choose_plain(path, "unet", scales)
    cells = plans.plain_plan("unet", scales).cells
    assert {cell.method: dict(cell.run.settings) for cell in cells} == {
        "pag": {"method": "pag", "blocks": "out.1", "scale": 1.5},
        "seg": {"method": "seg", "blocks": "out.1", "scale": 1.5, "contrast": 0.0},
        "uniform": {"method": "uniform", "blocks": "out.1", "scale": 1.5, "contrast": 0.0},
        "asag": {"method": "asag", "blocks": "out.1", "scale": 1.5, "contrast": 0.0, "strength": 0.25},
    }
    assert {cell.rival.key for cell in cells} == {cell.run.key for cell in cells if cell.method == "asag"}
    assert {(cell.run.conditional, cell.run.guidance_scale) for cell in [*cells, *searched_cells]} == {(True, 1.0)}
