"""Sampling: the same pictures however a run is cut, and names that tell runs and parts apart."""

import shutil
from pathlib import Path

import pytest
import torch

from asag.lab.embedded import shipped
from research.asag import sampling
from research.asag.descriptions import Store
from research.asag.found_scales import Scales
from research.asag.plans import main_plan
from research.asag.sample_size import Size
from research.asag.sampling import Part, Run, Sampler, captions


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
