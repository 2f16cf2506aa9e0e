"""The plans: which cells they have, beside which others, with which captions and noise."""

from pathlib import Path

import pytest

from asag.hosts.diffusers_models import FAMILIES
from asag.lab.embedded.architecture import new_unet
from asag.lab.embedded.architecture_mmdit import new_transformer
from asag.models.base import family_of
from asag.perturb import choose_layers
from research.asag import plans
from research.asag.cells import METHODS
from research.asag.found_scales import Scales
from research.asag.plans import main_plan


def test_searches_have_captions_and_noise_of_their_own():
    main = main_plan("unet", Scales(Path("none")))
    for name in plans.PLANS.keys() - {"main", "confirm", "plain", "strong"}:
        plan = plans.PLANS[name]("unet", Scales(Path("none")))
        assert plan.captions_seed != main.captions_seed
        assert not set(plan.seeds) & set(main.seeds)


def test_the_main_plan_has_every_method_in_every_protocol_that_has_scales(tmp_path):
    scales = Scales(tmp_path / "scales.json")
    for protocol in ("norm", "best"):
        for condition in ("unconditional", "conditional"):
            scales.put("unet", condition, protocol, dict.fromkeys(METHODS, 1.25))
    cells = main_plan("unet", Scales(tmp_path / "scales.json")).cells
    found = {(cell.condition, cell.protocol, cell.method) for cell in cells}
    for condition in ("unconditional", "conditional"):
        assert {(condition, "paper", name) for name in METHODS} <= found
        assert {(condition, "best", name) for name in METHODS} <= found
        assert {(condition, "norm", name) for name in METHODS if name != "asag"} <= found
    assert ("conditional", "none", "cfg") in found
    assert ("unconditional", "none", "cfg") not in found
    rivals = {(cell.condition, cell.protocol, cell.method): cell.rival for cell in cells}
    assert dict(rivals["conditional", "norm", "pag"].settings) == {"method": "asag", "scale": 1.5}
    assert dict(rivals["conditional", "best", "pag"].settings) == {"method": "asag", "scale": 1.25}
    assert main_plan("mmdit", scales).cells[0].run.model == "mmdit"


def test_beside_a_stronger_cfg_every_method_is_compared_with_asag_on_the_main_plans_pictures(tmp_path):
    scales = Scales(tmp_path / "scales.json")
    scales.put("unet", "conditional", "norm", {"pag": 0.8, "asag": 1.5})
    plan, main = plans.strong_plan("unet", scales), main_plan("unet", scales)
    assert (plan.captions, plan.seeds, plan.captions_seed) == (main.captions, main.seeds, main.captions_seed)
    assert {(cell.run.conditional, cell.run.guidance_scale) for cell in plan.cells} == {(True, 4.0)}
    assert {dict(cell.rival.settings)["scale"] for cell in plan.cells} == {1.5}
    found = [(cell.protocol, cell.method, dict(cell.run.settings).get("scale")) for cell in plan.cells]
    assert found == [("none", "cfg", None), ("paper", "asag", 1.5), ("norm", "pag", 0.8)]


def test_what_was_found_is_measured_once_more_on_captions_and_noise_of_its_own(tmp_path):
    scales = Scales(tmp_path / "scales.json")

    def cells(model):
        found = plans.fresh_plan(model, scales).cells
        return [(cell.condition, cell.run.guidance_scale, cell.method, dict(cell.run.settings)) for cell in found]

    beside = [
        ("conditional", cfg, method, settings)
        for cfg in (2.0, 4.0)
        for method, settings in (("cfg", {}), ("asag", {"method": "asag", "scale": 1.5}))
    ]
    assert cells("unet") == beside
    scales.put("unet", "unconditional", "best", {"asag": 0.75, "pag": 0.3, "similarity": 0.7})
    best = [{}, {"method": "pag", "scale": 0.3}, {"method": "asag", "scale": 0.75}]
    named = zip(("vanilla", "pag", "asag"), best, strict=True)
    assert cells("unet") == [*(("unconditional", 1.0, *each) for each in named), *beside]
    chosen = {"method": "asag", "blocks": "joint.4", "scale": 0.5}
    for condition in ("unconditional", "conditional"):
        scales.put("mmdit", condition, "chosen", chosen)
        scales.put("mmdit", condition, "chosen norm", {"seg": 0.6, "similarity": 2.0})
    assert cells("mmdit") == [
        ("unconditional", 1.0, "vanilla", {}),
        ("unconditional", 1.0, "seg", {"method": "seg", "blocks": "joint.4", "scale": 0.6}),
        ("unconditional", 1.0, "asag", chosen),
        ("conditional", 2.0, "cfg", {}),
        ("conditional", 2.0, "asag", chosen),
    ]
    fresh, main = plans.fresh_plan("mmdit", scales), main_plan("mmdit", scales)
    assert (fresh.captions, len(fresh.seeds)) == (main.captions, len(main.seeds))
    taken = [plans.PLANS[name]("mmdit", scales) for name in plans.PLANS.keys() - {"fresh"}]
    assert fresh.captions_seed not in {plan.captions_seed for plan in taken}
    assert not {seed for plan in taken for seed in plan.seeds} & set(fresh.seeds)


@pytest.mark.parametrize("name", plans.PLANS)
def test_every_plans_blocks_are_in_its_model(name, tmp_path):
    for model, network in (("unet", new_unet()), ("mmdit", new_transformer())):
        for cell in plans.PLANS[name](model, Scales(tmp_path / "scales.json")).cells:
            blocks = dict(cell.run.settings).get("blocks", "auto")
            assert choose_layers(network, family_of(network, FAMILIES), blocks)


def test_a_push_without_contrast_stands_beside_the_whole_one(tmp_path):
    cells = plans.PLANS["contrast"]("mmdit", Scales(tmp_path / "scales.json")).cells
    beside = [cell for cell in cells if cell.rival]
    assert len(beside) == len(cells) - 2  # all but the baselines
    for cell in beside:
        settings = dict(cell.run.settings)
        assert settings.pop("contrast") < 1
        assert dict(cell.rival.settings) == settings
        assert cell.rival.condition == cell.condition


@pytest.mark.parametrize("model", plans.EVERY)
def test_a_preset_computed_less_often_stands_beside_itself_in_every_step(model, tmp_path):
    """Also one that has `every` itself."""
    cells = plans.PLANS["every"](model, Scales(tmp_path / "scales.json")).cells
    first = [cell for cell in cells if cell.method == "asag" and not cell.rival]
    assert [cell.protocol for cell in first] == [*plans.EVERY[model]]
    assert all("every" not in dict(cell.run.settings) for cell in first)
    beside = [cell for cell in cells if cell.rival]
    assert [dict(cell.run.settings)["every"] for cell in beside] == [2, 3, 4] * len(first)
    for cell in beside:
        settings = dict(cell.run.settings)
        settings.pop("every")
        assert dict(cell.rival.settings) == settings
