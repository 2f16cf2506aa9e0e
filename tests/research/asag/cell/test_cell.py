"""The decisive cell on a tiny random model: the same lines when it is broken off, and figures from other code."""

import json

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from asag.hosts.diffusers_pipeline import asag_guidance
from asag.lab.renderings import shipped
from asag.lab.renderings.judge import load_judge, verdict
from research import arguments
from research.asag import sampling
from research.asag.cell import fingerprint, run
from research.asag.cell.choice import Choice
from research.asag.cell.fingerprint import SWEEPS
from research.asag.cell.model import Model
from research.asag.cell.pictures import describe, principal
from research.lines import read_lines, write_lines
from tests.research.asag.cell.test_network import write as write_network

SMALL = ["--captions", "40", "--seeds", "11", "12", "--reference", "60", "--steps", "2"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(sampling, "PART", 40)


def made_up_fingerprint(path, weights):
    """One whose choice is the second head of the middle block."""
    figures = dict.fromkeys(SWEEPS, 4.0) | {"cosine": 0.8, "to_uniform": 0.9, "size": 0.5, "weights": weights}
    heads = {None: 6.0, 0: 4.0, 1: 9.0}
    write_lines(
        path,
        [{"block": "mid.0", "head": head, **figures, "similarity 0.001": sweeps} for head, sweeps in heads.items()],
    )


@pytest.fixture
def options(tmp_path, unet_folder, data):
    """The command's options for few pictures at half the size."""
    model = Model(unet_folder, half_size=True)
    made_up_fingerprint(tmp_path / "out" / "fingerprint-renderings-unet-half.jsonl", model.weights())
    folders = ["--model", str(unet_folder), "--data", str(data), "--out", str(tmp_path / "out")]
    return [*folders, "--half-size", "--store", str(tmp_path / "store"), *SMALL]


def lines_of(tmp_path):
    return {line["method"]: line for line in read_lines(tmp_path / "out" / "cell-renderings-unet-half.jsonl")}


def test_all_methods_are_measured_in_the_chosen_head_and_a_second_run_makes_nothing(
    options, tmp_path, unet_folder, capsys, monkeypatch
):
    assert run.main(options) == 0
    said = capsys.readouterr().out
    assert "mid.0:h1 has the fingerprint" in said
    assert "5 of 5 methods complete" in said
    lines = lines_of(tmp_path)
    assert list(lines) == ["cfg", "asag", "uniform", "seg", "pag"]
    assert lines["cfg"]["settings"] == {}
    for method in ("asag", "uniform", "seg", "pag"):
        assert lines[method]["settings"] == {"method": method, "unit": "cfg", "scale": 0.5, "blocks": "mid.0:h1"}
        assert lines[method]["metrics"]["moved"]["value"] > 0
    assert lines["cfg"]["metrics"]["moved"]["value"] == 0
    assert (lines["seg"]["samples"], lines["seg"]["seeds"]) == (80, [11, 12])
    compare_with_other_code(lines, unet_folder)
    page = (tmp_path / "out" / "cell-renderings-unet-half.md").read_text()
    assert "80 pictures a method, CFG 3, 2 steps; guided at mid.0:h1, which has the fingerprint." in page
    assert page.count("\n| ") == 7
    monkeypatch.setattr(run.Cell, "make", lambda *given: pytest.fail("there already"))
    assert run.main(options) == 0
    assert lines_of(tmp_path) == lines


def compare_with_other_code(lines, folder):
    """Named right and moved, from pictures that the pipeline makes without the cell's code."""
    pipeline, captions, judge = shipped.fast_pipeline(folder), shipped.Captions(folder), load_judge(folder)
    learnt = Model(folder).learnt
    order = torch.Generator().manual_seed(41_000)
    asked = [learnt[row] for _ in range(6) for row in torch.randperm(len(learnt), generator=order)][:40]
    options = {"half_size": True, "guidance_scale": 3.0, "num_inference_steps": 2}

    def pictures():
        return torch.cat([shipped.sample(pipeline, captions, asked, seed=1000 * seed, **options) for seed in (11, 12)])

    found = {"cfg": pictures()}
    with asag_guidance(pipeline, method="pag", unit="cfg", scale=0.5, blocks="mid.0:h1"):
        found["pag"] = pictures()
    for method, images in found.items():
        right = verdict(judge, images, asked * 2, learnt).shares()["name_right"]
        assert lines[method]["metrics"]["name_right"]["value"] == pytest.approx(right, abs=1e-6)
    cells = [torch.nn.functional.avg_pool2d(found[method], 16).flatten(1) for method in ("cfg", "pag")]
    moved = (cells[0] - cells[1]).square().mean(1).sqrt().mean()
    assert lines["pag"]["metrics"]["moved"]["value"] == pytest.approx(float(moved), rel=0.02)


def test_a_run_in_shares_that_is_broken_off_comes_to_the_same_lines(options, tmp_path, capsys, monkeypatch):
    make, made = run.Cell.make, []

    def broken(self, of, part):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append((of.method, part.seed))
        make(self, of, part)

    monkeypatch.setattr(run.Cell, "make", broken)
    with pytest.raises(KeyboardInterrupt):
        run.main(options)
    assert not (tmp_path / "out" / "cell-renderings-unet-half.jsonl").exists()
    made.clear()
    monkeypatch.setattr(
        run.Cell, "make", lambda self, of, part: (made.append((of.method, part.seed)), make(self, of, part))
    )
    assert run.main([*options, "--share", "0/2"]) == 0
    assert "0 of 5 methods complete" in capsys.readouterr().out
    assert {seed for _, seed in made} == {11}
    assert run.main([*options, "--share", "1/2"]) == 0
    assert run.main([*options, "--report"]) == 0
    assert "5 of 5 methods complete" in capsys.readouterr().out
    # The reference's first part was there, and so were two of the baseline's.
    assert len(made) == 2 * 5 + 2 - 3


def test_distances_are_taken_on_another_networks_features_too(tmp_path, unet_folder, data):
    write_network(tmp_path / "net")
    folders = [
        "--model",
        str(unet_folder),
        "--data",
        str(data),
        "--network",
        str(tmp_path / "net"),
        "--out",
        str(tmp_path),
    ]
    args = arguments.cell([*folders, "--half-size", "--store", str(tmp_path / "store"), *SMALL])
    cell = run.Cell(args, Model(unet_folder, True, 2), Choice("mid.0", (0,), False))
    for each in (cell.reference, *cell.runs[:2]):
        for part in cell.missing(each):
            cell.make(each, part)
    lines = {line["method"]: line for line in cell.lines()}
    assert list(lines) == ["cfg", "asag"]
    assert lines["cfg"]["network"] == "net"
    made, real = (
        cell.store.read(each, cell.parts(each))["network"].double() for each in (cell.runs[1], cell.reference)
    )
    directions = principal(real)
    a, b = (each.numpy() @ directions.numpy() for each in (made, real))
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert lines["asag"]["metrics"]["fd_network"]["value"] == pytest.approx(expected, rel=1e-3)
    assert "comes nearest to the fingerprint" in run.page(list(lines.values()), cell.choice)


def test_principal_directions_hold_most_of_what_varies():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 6, generator=generator) * torch.tensor([1.0, 9, 1, 5, 1, 1])
    directions = principal(features, 2)
    assert directions.square().sum(1)[[1, 3]].min() > 0.9
    assert torch.allclose(directions.T @ directions, torch.eye(2, dtype=torch.float64), atol=1e-9)


def test_real_renderings_are_only_those_that_were_learnt_and_are_not_asked_for(options, unet_folder):
    cell = run.Cell(arguments.cell(options), Model(unet_folder, True, 2), Choice("mid.0", (0,), True))
    assert len(cell.kept) == len(cell.model.learnt) == 7
    assert [part.pictures for part in cell.parts(cell.reference)] == [40, 20]
    described = describe(cell._drawn(cell.parts(cell.reference)[1]), cell.model.judge, None)
    assert described["features"].shape == (20, 256)
    assert "name_right" not in described


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--captions", "39"], "--captions: 39; allowed: at least 40"),
        (
            ["--fingerprint", "nowhere.jsonl"],
            "nowhere.jsonl isn't there; allowed: what `python -m research fingerprint`",
        ),
        (["--model", "nowhere"], "--model: nowhere has no unet/config.json, "),
        (["--data", "nowhere"], "--data: nowhere: there is no"),
        (["--network", "nowhere"], "--network: nowhere isn't there"),
    ],
)
def test_what_is_missing_is_named(options, capsys, change, message):
    with pytest.raises(SystemExit):
        run.main([*options, *change])
    assert message in capsys.readouterr().err


def test_a_fingerprint_of_other_weights_is_refused(options, tmp_path, capsys):
    made_up_fingerprint(tmp_path / "other.jsonl", "of others")
    with pytest.raises(SystemExit):
        run.main([*options, "--fingerprint", str(tmp_path / "other.jsonl")])
    assert "other.jsonl is of other weights; allowed: the one of this model" in capsys.readouterr().err


def test_a_measured_fingerprint_is_what_the_cell_reads(options, tmp_path, unet_folder):
    given = ["--model", str(unet_folder), "--half-size", "--steps", "2", "--pictures", "1", "--levels", "1"]
    assert fingerprint.main([*given, "--out", str(tmp_path / "out")]) == 0
    choice = run.chosen(arguments.cell(options), Model(unet_folder, True, 2))
    assert choice.block in ("in.3.0", "mid.0", "out.0.0", "out.1.0")
    assert json.loads((tmp_path / "out" / "fingerprint-renderings-unet-half.jsonl").read_text().splitlines()[0])
