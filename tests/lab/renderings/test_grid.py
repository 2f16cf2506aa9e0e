"""The grid of a model of renderings: columns, frames, and what the judge says."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from asag.__main__ import main
from asag.lab.renderings import grid
from asag.lab.renderings.judge import Verdict
from tests.lab.renderings import tiny_model

NAMES = ["red circle", "blue square", "green heart", "grinning face"]


@pytest.fixture(scope="module")
def model(tmp_path_factory, folder):
    return tiny_model.write_unet(tmp_path_factory.mktemp("model"), folder)


def test_the_demo_draws_a_model_of_renderings(tmp_path, model, monkeypatch, capsys):
    monkeypatch.setattr(grid, "CAPTIONS", NAMES)
    options = ["--model", str(model), "--out", str(tmp_path), "--samples", "8", "--steps", "2"]
    assert main(["demo", *options]) == 0
    assert np.asarray(Image.open(tmp_path / "compare.png").convert("RGB")).std() > 20
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert list(record["methods"]) == list(grid.METHODS)
    assert "CFG + ASAG" in capsys.readouterr().out


def test_each_method_has_the_same_captions_and_noise(tmp_path, model, monkeypatch):
    seen = {}

    def sampled(pipeline, captions, texts, settings, **arguments):
        seen.setdefault((settings.get("method"), arguments.pop("guidance_scale")), []).append((texts, arguments))
        return torch.zeros(len(texts), 3, 64, 64)

    monkeypatch.setattr(grid, "CAPTIONS", NAMES)
    monkeypatch.setattr(grid.shipped, "guided_sample", sampled)
    assert main(["demo", "--model", str(model), "--out", str(tmp_path), "--samples", "12", "--seed", "3"]) == 0
    assert list(seen) == [(None, 1.0), (None, 3.0), ("pag", 3.0), ("seg", 3.0), ("asag", 3.0)]
    first, *others = seen.values()
    assert all(each == first for each in others)
    assert first == [
        (NAMES * 2, {"seed": 3, "num_inference_steps": 14}),
        (NAMES, {"seed": 11, "num_inference_steps": 14}),
    ]


def test_a_wrong_picture_has_a_red_frame(tmp_path):
    images, right = torch.ones(8, 3, 64, 64), torch.tensor([False] + [True] * 7)
    grid.compare({"a": images}, {"a": Verdict(right, right)}, ["red heart"] * 8, tmp_path / "a.png")
    drawn = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    red = np.abs(drawn - np.array([0xD0, 0x30, 0x30])).max(-1) < 8
    rows = np.flatnonzero(red.any(1))
    assert rows.size
    assert rows.max() < drawn.shape[0] / 6
