"""The command: it stops and goes on, shares work, and names wrong options."""

import shutil

import pytest

from research.asag import evaluate, sampling
from research.asag.descriptions import Store
from research.asag.sampling import Sampler
from research.lines import read_lines, write_lines


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
    ("given", "message"),
    [
        (["--captions", "30"], "--captions: 30; allowed: at least 40"),
        (["--share", "2/2"], "'2/2'; allowed: I/N"),
    ],
)
def test_wrong_options_are_named(small, given, message, capsys):
    with pytest.raises(SystemExit):
        evaluate.main([*small, *given])
    assert message in capsys.readouterr().err


def test_a_model_that_is_not_there_is_named(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sampling.MODELS["mmdit"], "MODEL", tmp_path / "none")
    with pytest.raises(SystemExit):
        evaluate.main([*small, "--model", "mmdit"])
    assert "--model: mmdit, which is not trained yet; allowed: unet" in capsys.readouterr().err
