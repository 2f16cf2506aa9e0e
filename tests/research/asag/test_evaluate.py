"""The evaluation: metrics against libraries, paired errors against what is known, runs that stop and go on."""

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from asag.hosts.diffusers_models import FAMILIES
from asag.hosts.diffusers_pipeline import asag_guidance
from asag.lab.embedded import drawings, shipped
from asag.lab.embedded.architecture import new_unet
from asag.lab.embedded.architecture_mmdit import new_transformer
from asag.models.base import family_of
from asag.perturb import choose_layers
from research import arguments
from research.asag import evaluate, metrics, plans, sampling
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
from research.asag.cells import METHODS, Cell, Plan, baseline, guided
from research.asag.descriptions import Store, describe, spectrum
from research.asag.found_scales import Scales
from research.asag.plans import main_plan
from research.asag.result_files import Measured
from research.asag.sample_size import Size
from research.asag.sampling import Part, Run, Sampler, captions
from research.lines import read_lines, write_lines


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def normal(count: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    mix = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) / 4 + torch.eye(16)
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed)) @ mix * scale + shift


def test_frechet_distance_is_the_formula_with_scipys_matrix_root():
    a, b = normal(400, 1, 1.3, 0.2), normal(600, 2)
    block = metrics.blocks_of(400, 1)
    found = metrics.Frechet(b)(a, block)

    def direct(a, b):
        root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
        return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)

    a, b = a.double().numpy(), b.double().numpy()
    assert found.value == pytest.approx(direct(a, b), rel=1e-9)
    assert float(found.without[7]) == pytest.approx(direct(a[block.numpy() != 7], b), rel=1e-9)


def test_kernel_distance_is_the_unbiased_estimate_written_out():
    a, b = normal(80, 1, 1.3), normal(60, 2)
    block = metrics.blocks_of(80, 1)
    found = metrics.Kernel(b)(a, block)

    def direct(a, b):
        def kernel(x, y):
            return (x @ y.T / 16 + 1) ** 3

        def own(x):
            return (kernel(x, x).sum() - np.trace(kernel(x, x))) / (len(x) * (len(x) - 1))

        return own(a) + own(b) - 2 * kernel(a, b).mean()

    # Whatever the features' unit: they are divided by the reference's RMS.
    size = b.double().square().mean().sqrt()
    a, b = (a.double() / size).numpy(), (b.double() / size).numpy()
    assert found.value == pytest.approx(direct(a, b), rel=1e-9)
    assert float(found.without[3]) == pytest.approx(direct(a[block.numpy() != 3], b), rel=1e-9)


def test_inception_like_counts_classes_that_are_certain_and_even():
    block = metrics.blocks_of(240, 1)
    even = 50.0 * torch.eye(24).repeat(10, 1)
    assert metrics.inception_like(even, block).value == pytest.approx(24, rel=1e-6)
    assert metrics.inception_like(torch.zeros(240, 24), block).value == pytest.approx(1)


def test_errors_are_those_of_the_mean_and_pairing_takes_the_common_part_away():
    generator = torch.Generator().manual_seed(3)
    common, own = torch.randn(2, 4000, generator=generator)
    block = metrics.blocks_of(4000, 1)
    one, other = metrics.mean(common, block), metrics.mean(common + 0.1 * own + 0.05, block)
    # 40 groups know a standard error to about 11 %.
    assert one.error == pytest.approx(1 / 4000**0.5, rel=0.35)
    difference, error = other.minus(one)
    assert difference == pytest.approx(0.05, abs=0.01)
    assert error == pytest.approx(0.1 / 4000**0.5, rel=0.35)


def test_blocks_hold_the_same_captions_of_every_seed():
    block = metrics.blocks_of(80, 3)
    assert block.bincount().tolist() == [6] * 40
    assert (block.view(3, 80) == block[:80]).all()


def test_diversity_compares_pictures_of_a_caption():
    layout = torch.zeros(3 * 80, 48)
    layout[80:160] = 1.0
    # Of the three pairs two are 1 apart, one is alike.
    assert metrics.diversity(layout, 3, metrics.blocks_of(80, 3)).value == pytest.approx(2 / 3)


def test_a_description_tells_what_is_in_the_picture():
    drawn = drawings.draw(40, torch.Generator().manual_seed(4))
    described = describe(*drawn, shipped.load_classifier())
    assert described["right"].mean() > 0.95
    assert described["layout"][:, 0].allclose(drawn.images[:, 0, :8, :8].mean((1, 2)), atol=1e-6)
    assert torch.equal(described["contrast"], drawn.images.flatten(1).std(1))
    grey = describe(torch.zeros(1, 3, 32, 32), drawn.labels[:1], shipped.load_classifier())
    assert grey["saturation"] == grey["clipped"] == 0
    burnt = describe(torch.ones(1, 3, 32, 32), drawn.labels[:1], shipped.load_classifier())
    assert burnt["clipped"] == 1


def test_the_spectrum_finds_a_wave_in_its_ring():
    wave = torch.cos(torch.arange(32) * 2 * torch.pi * 8 / 32).expand(1, 3, 32, 32)
    # 8 of at most 16 periods: half the highest frequency, the last of the first six rings.
    assert int(spectrum(wave)[0].argmax()) == 5


def test_parts_are_the_same_however_a_run_is_cut_and_the_noise_is_shared(monkeypatch):
    monkeypatch.setattr(sampling, "PART", 4)
    labels, sampler = captions(4), Sampler()
    plain = Run.of("unet", True, guidance_scale=2.0, steps=2)
    guided = Run.of("unet", True, {"scale": 1e-6}, guidance_scale=2.0, steps=2)
    first = sampler.sample(plain, Part(1, 0), labels)
    assert torch.equal(first, Sampler().sample(plain, Part(1, 0), labels))
    assert torch.allclose(first, sampler.sample(guided, Part(1, 0), labels), atol=1e-4)
    assert not torch.allclose(first, sampler.sample(plain, Part(2, 0), labels), atol=0.1)
    assert not torch.allclose(first, sampler.sample(plain, Part(1, 1), labels), atol=0.1)


def test_the_solver_goes_where_ddim_goes():
    labels, noise, sampler = captions(2), shipped.start_noise(2, 5), Sampler()
    null, options = shipped.null_embeds(2), {"guidance_scale": 1.0, "num_inference_steps": 100}
    fine = shipped.sample_from(shipped.load_pipeline(), null, null, noise, **options)
    found = [sampler.batch(Run.of("unet", False, steps=steps), labels, noise)[0] for steps in (7, 30)]
    errors = [float((each - fine).square().mean().sqrt()) for each in found]
    assert errors[1] < 0.1 * float(fine.std()) < errors[0]


def test_unconditional_runs_do_not_look_at_captions():
    run, sampler = Run.of("unet", False, steps=2), Sampler()
    labels = captions(6)
    assert torch.equal(sampler.sample(run, Part(1, 0), labels[:3]), sampler.sample(run, Part(1, 0), labels[3:]))


def test_pictures_that_are_not_finite_are_refused_and_named(monkeypatch):
    sampler, run = Sampler(), Run.of("unet", False, steps=1)
    monkeypatch.setattr(sampler, "batch", lambda *given: (torch.full((1, 3, 32, 32), torch.nan), None))
    with pytest.raises(sampling.PartError, match=rf"run {run.key}, seed 3, part 2: values that aren't finite"):
        sampler.sample(run, Part(3, 2), captions(1))


def test_keys_tell_runs_apart_and_are_the_same_on_every_machine():
    every = [cell.run for cell in main_plan("unet", Scales(Path("none"))).cells]
    assert len({run.key for run in every}) == len(set(every)) == 13
    one, other = ({"scale": 2, "blocks": "mid"}, {"blocks": "mid", "scale": 2.0, "iterations": 2})
    assert Run.of("unet", True, one).key == Run.of("unet", True, other).key


def test_other_weights_make_other_keys(tmp_path, monkeypatch):
    run, before = Run.of("unet", False), Run.of("unet", False).key
    folder = tmp_path / "model"
    shutil.copytree(shipped.MODEL, folder)
    monkeypatch.setattr(shipped, "MODEL", folder)
    sampling.weights.cache_clear()
    assert run.key == before
    (folder / "conditions.safetensors").write_bytes(b"other")
    sampling.weights.cache_clear()
    assert run.key != before
    sampling.weights.cache_clear()


def test_a_part_with_fewer_pictures_is_not_taken_for_a_whole_one():
    short, long = (Size(count, (1,)).parts() for count in (300, 500))
    assert [part.pictures for part in short] == [250, 50]
    assert [part.pictures for part in long] == [250, 250]
    store = Store(Path("store"))
    run = Run.of("unet", False)
    assert store.path(run, short[0]) == store.path(run, long[0])
    assert store.path(run, short[1]) != store.path(run, long[1])
    assert torch.equal(short[1].labels(), long[1].labels()[:50])


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


def test_beside_a_stronger_cfg_each_method_is_measured_at_its_best_of_a_search(tmp_path):
    scales, path = Scales(tmp_path / "scales.json"), tmp_path / "strong-search-unet.jsonl"
    scales.put("unet", "conditional", "norm", {"pag": 0.8, "asag": 1.5})
    searched = plans.strong_search_plan("unet", scales).cells
    assert {(cell.run.conditional, cell.run.guidance_scale) for cell in searched} == {(True, 4.0)}
    lines = [
        {
            "condition": "conditional",
            "method": cell.method,
            "settings": dict(cell.run.settings),
            "samples": 500,
            "metrics": {"fd": {"value": abs(dict(cell.run.settings).get("scale", 0) - 3.0)}},
        }
        for cell in searched
    ]
    write_lines(path, lines[:-1])  # without ASAG's last
    choose_strong(path, "unet", scales)
    assert scales.get("unet", "conditional", "strong") == {"pag": 3.2}
    write_lines(path, lines)
    choose_strong(path, "unet", scales)
    assert scales.get("unet", "conditional", "strong") == {"pag": 3.2, "asag": 3.0}
    best = [cell for cell in plans.strong_plan("unet", scales).cells if cell.protocol == "best"]
    assert [(cell.method, dict(cell.run.settings)["scale"]) for cell in best] == [("pag", 3.2), ("asag", 3.0)]
    assert {dict(cell.rival.settings)["scale"] for cell in best} == {3.0}


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


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A plan of two cells, and the command's options for few pictures in two parts."""
    monkeypatch.setattr(sampling, "PART", 20)
    monkeypatch.setattr(evaluate, "_REFERENCE", 300)

    def plan(model, scales):
        base = Run.of(model, True, guidance_scale=2.0, steps=1)
        cells = [Cell("small", "none", "cfg", base, base)]
        asag = guided(base, {"scale": 1.5})
        cells.append(Cell("small", "paper", "asag", asag, base, asag))
        return Plan(tuple(cells), 40, (1, 2))

    monkeypatch.setitem(evaluate.PLANS, "small", plan)
    monkeypatch.setattr(arguments, "PLANS", ("small",))
    return ["small", "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]


def test_the_command_writes_a_line_a_cell_and_goes_on_where_it_was_stopped(small, tmp_path, monkeypatch, capsys):
    evaluate.main(small)
    lines = read_lines(tmp_path / "out/small-unet.jsonl")
    assert [each["method"] for each in lines] == ["cfg", "asag"]
    assert (lines[1]["samples"], lines[1]["seeds"], lines[1]["settings"]) == (80, [1, 2], {"scale": 1.5})
    assert lines[0]["metrics"]["fd"]["to_baseline"] == 0
    assert lines[0]["metrics"]["fd"]["to_baseline_error"] == 0
    assert lines[1]["metrics"]["fd"]["to_baseline"] != 0
    assert lines[1]["metrics"]["fd"]["to_baseline_error"] > 0
    assert lines[1]["metrics"]["kid"]["to_asag"] == 0
    assert "to_asag" not in lines[0]["metrics"]["kid"]
    assert "right" in lines[0]["metrics"]
    assert (lines[0]["solver"], lines[0]["captions_seed"]) == ("DPM++ 2M", sampling.CAPTIONS_SEED)
    stored = sorted((tmp_path / "store").rglob("*.safetensors"))
    assert len(stored) == 8
    stored[0].unlink()
    sampled = []
    original = Sampler.sample
    monkeypatch.setattr(Sampler, "sample", lambda *given: sampled.append(given[1:3]) or original(*given))
    (tmp_path / "out/small-unet.jsonl").unlink()
    evaluate.main([*small, "--report"])
    assert not sampled
    assert "1 of 2 cells complete" in capsys.readouterr().out
    evaluate.main(small)
    assert len(sampled) == 1
    assert read_lines(tmp_path / "out/small-unet.jsonl") == lines


def test_what_has_a_line_stays_measured_when_its_pictures_are_gone(small, tmp_path, capsys):
    path = tmp_path / "out/small-unet.jsonl"
    evaluate.main([*small, "--report", "--prune"])
    assert not path.exists()
    evaluate.main(small)
    lines = read_lines(path)
    shutil.rmtree(tmp_path / "store")
    evaluate.main(small)
    assert not (tmp_path / "store").exists()
    assert read_lines(path) == lines
    stale = lines[0] | {"run": "of other weights"}
    write_lines(path, [stale, lines[1]])
    evaluate.main([*small, "--report"])
    assert "1 of 2 cells complete" in capsys.readouterr().out
    evaluate.main([*small, "--captions", "60", "--only", "cfg"])
    assert [(line["method"], line["samples"]) for line in read_lines(path)] == [("cfg", 120), ("asag", 80), ("cfg", 80)]
    evaluate.main(small)
    assert [line["samples"] for line in read_lines(path)] == [120, 80, 80]
    assert stale in read_lines(path)
    evaluate.main([*small, "--report", "--prune"])
    assert "1 lines dropped" in capsys.readouterr().out
    assert [line["samples"] for line in read_lines(path)] == [120, 80]


def test_a_line_stands_for_its_own_pictures_and_its_own_rival_only(tmp_path):
    base = Run.of("unet", False, steps=1)
    run, first, second = (guided(base, {"scale": scale}) for scale in (1.0, 2.0, 3.0))
    cell = Cell("small", "paper", "pag", run, base, first)
    size = Size(40, (1, 2))
    measured = Measured(tmp_path / "small.jsonl", Plan((cell,), 40, (1, 2)))
    line = evaluate.line(cell, size, {}, {})
    measured.add([line])
    assert not measured.lacks([cell], size)
    for smaller in (Size(40, (2,)), Size(30, (1, 2))):
        assert not measured.lacks([cell], smaller)
    for other in (Size(41, (1, 2)), Size(40, (1, 3)), Size(40, (1, 2, 3)), Size(40, (1, 2), 5)):
        assert measured.lacks([cell], other) == [cell]
    changed = Cell("small", "paper", "pag", run, base, second)
    assert measured.lacks([changed], size) == [changed]
    measured.add([evaluate.line(changed, Size(30, (1, 2)), {}, {})])
    assert read_lines(measured.path) == [line]  # which has more pictures
    measured.add([evaluate.line(changed, size, {}, {})])
    assert not measured.lacks([changed], size)
    assert len(read_lines(measured.path)) == 1


def test_writers_that_add_at_the_same_time_lose_nothing(tmp_path):
    base = Run.of("unet", False, steps=1)
    each = [guided(base, {"scale": float(i)}) for i in range(1, 41)]
    cells = [Cell("small", "paper", "asag", run, base) for run in each]
    path = tmp_path / "small.jsonl"

    def add(part):
        measured = Measured(path, Plan(tuple(cells), 40, (1,)))
        for cell in part:
            measured.add([evaluate.line(cell, Size(40, (1,)), {}, {})])

    threads = [threading.Thread(target=add, args=[cells[i::4]]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line["settings"]["scale"] for line in read_lines(path)] == [float(i) for i in range(1, 41)]


def test_a_cell_is_written_as_soon_as_it_is_complete(small, tmp_path, monkeypatch):
    original = Sampler.sample

    def sample(self, run, part, labels):
        if run.settings:
            raise KeyboardInterrupt
        return original(self, run, part, labels)

    monkeypatch.setattr(Sampler, "sample", sample)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(small)
    assert [line["method"] for line in read_lines(tmp_path / "out/small-unet.jsonl")] == ["cfg"]


def test_there_are_as_many_drawings_as_pictures_of_each_number(small, tmp_path):
    evaluation, path = evaluate.Evaluation(Store(tmp_path)), tmp_path / "drawings.jsonl"
    line = {"seeds": [1, 2], "captions_seed": sampling.CAPTIONS_SEED}
    lines = [
        line | {"condition": condition, "samples": samples}
        for condition, samples in (("unconditional", 80), ("conditional", 80), ("conditional", 120))
    ]
    evaluate.add_drawings(evaluation, "unet", lines[:2], path)
    write_lines(path, [each | {"seen": True} for each in read_lines(path)])
    evaluate.add_drawings(evaluation, "unet", lines, path)
    found = {(each["condition"], each["samples"]): "seen" in each for each in read_lines(path)}
    assert found == {("unconditional", 80): True, ("conditional", 80): True, ("conditional", 120): False}
    write_lines(path, [each | {"weights": "of another classifier", "seen": True} for each in read_lines(path)])
    evaluate.add_drawings(evaluation, "unet", lines, path)
    assert not any("seen" in each for each in read_lines(path))


def test_shares_sample_every_part_once(small, tmp_path):
    evaluate.main([*small, "--share", "0/2"])
    first = set((tmp_path / "store").rglob("*.safetensors"))
    assert len(first) == 4
    times = {path: path.stat().st_mtime_ns for path in first}
    evaluate.main([*small, "--share", "1/2"])
    assert len(list((tmp_path / "store").rglob("*.safetensors"))) == 8
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())


def test_one_condition_or_method_can_go_first(small, tmp_path):
    def sampled(*options):
        evaluate.main([*small, *options])
        return len(list((tmp_path / "store").rglob("*.safetensors")))

    assert sampled("--condition", "unconditional") == 0
    assert sampled("--condition", "conditional", "--only", "pag") == 4  # the baseline, which is for all
    assert sampled("--only", "asag") == 8


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--captions", "30"], "--captions: 30; allowed: at least 40"),
        (["--share", "2/2"], "'2/2'; allowed: I/N"),
    ],
)
def test_wrong_options_are_named(small, given, told, capsys):
    with pytest.raises(SystemExit):
        evaluate.main([*small, *given])
    assert told in capsys.readouterr().err


def test_a_model_that_is_not_there_is_named(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sampling.MODELS["mmdit"], "MODEL", tmp_path / "none")
    with pytest.raises(SystemExit):
        evaluate.main([*small, "--model", "mmdit"])
    assert "--model: mmdit, which is not trained yet; allowed: unet" in capsys.readouterr().err


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
    def told(method, scale, fd):
        return {
            "condition": "conditional",
            "method": method,
            "settings": {"method": method, "scale": scale},
            "samples": 500,
            "metrics": {"fd": {"value": fd}},
        }

    path = tmp_path / "search-unet.jsonl"
    searched = [told("pag", scale, fd) for scale, fd in enumerate((5.0, 4.0, 6.0, 7.0, 8.0, 9.0), 1)]
    write_lines(path, [*searched, told("asag", 3.0, 9.0)])
    choose_best(path, "unet", Scales(tmp_path / "scales.json"))
    assert Scales(tmp_path / "scales.json").get("unet", "conditional", "best") == {"pag": 2.0}


def test_two_processes_add_to_the_scales(tmp_path):
    first, second = (Scales(tmp_path / "scales.json") for _ in range(2))
    first.put("unet", "conditional", "norm", {"pag": 1.0})
    second.put("mmdit", "conditional", "norm", {"pag": 2.0})
    assert Scales(tmp_path / "scales.json").get("unet", "conditional", "norm") == {"pag": 1.0}
    assert second.get("unet", "conditional", "norm") == {"pag": 1.0}


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

    def told(settings, fd):
        line = {"condition": "unconditional", "method": "asag", "settings": settings, "samples": 500}
        return line | {"metrics": {"fd": {"value": fd}}}

    def without(block, scale, fd):
        return told({"blocks": block, "scale": scale, "contrast": 0.0}, fd)

    others = [told({"blocks": "mid", "scale": 9.0}, 0.5), told({"scale": 8.0, "contrast": 0.5}, 0.5)]
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

    def told(method, settings, fd):
        return {
            "condition": "unconditional",
            "method": method,
            "settings": settings,
            "samples": 500,
            "metrics": {"fd": {"value": fd}},
        }

    write_lines(tmp_path / "search-unet.jsonl", [told("pag", {"method": "pag", "scale": 1.0}, 1.0)])
    write_lines(tmp_path / "strength-unet.jsonl", [told("asag", {"strength": 2.0}, 4.0)])
    write_lines(tmp_path / "window-unet.jsonl", [told("asag", {"end": 0.5, "strength": 0.5, "scale": 1.0}, 3.0)])
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
    line = {"condition": "unconditional", "method": "asag", "samples": 500, "metrics": {"fd": {"value": 1.0}}}
    settings = {"end": 0.5, "scale": 1.0, "strength": 1.0}  # the paper's strength, said in so many words
    write_lines(tmp_path / "strength-unet.jsonl", [line | {"settings": settings}])
    scales = Scales(tmp_path / "scales.json")
    calibrate_chosen(Sampler(), "unet", scales, steps=4)
    assert scales.get("unet", "unconditional", "chosen norm").keys() == {*METHODS} - {"asag"}
    assert "paper plan" not in {cell.method for cell in plans.confirm_plan("unet", scales).cells}


def test_each_method_is_measured_at_its_best_without_cfg_once_all_were_searched(tmp_path):
    scales, path = Scales(tmp_path / "scales.json"), tmp_path / "plain-search-unet.jsonl"
    searched = plans.plain_search_plan("unet", scales).cells
    # The higher the number the lower FD; the last PAG keeps its contrast, the last ASAG is the weaker one.
    lines = [
        {
            "method": cell.method,
            "settings": dict(cell.run.settings),
            "samples": 500,
            "metrics": {"fd": {"value": -float(i)}},
        }
        for i, cell in enumerate(searched)
    ]
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
    assert {(cell.run.conditional, cell.run.guidance_scale) for cell in [*cells, *searched]} == {(True, 1.0)}
