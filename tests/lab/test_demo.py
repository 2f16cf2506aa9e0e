"""The demo, shortened: it draws with every method and writes what it promises."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import tqdm

from asag.__main__ import main
from asag.lab import demo
from asag.lab.embedded import quality, shipped_mmdit


def test_demo_writes_the_grid_and_the_figures(tmp_path, capsys):
    assert main(["demo", "--shapes", "--out", str(tmp_path), "--samples", "8", "--steps", "2", "--threads", "1"]) == 0
    grid = np.asarray(Image.open(tmp_path / "compare.png").convert("RGB"))
    assert grid.shape[0] > 1000
    assert grid.std() > 30
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert (record["samples"], record["steps"]) == (8, 2)
    assert list(record["methods"]) == ["without", "PAG", "SEG", "ASAG"]
    assert all(0 < values["contrast"] < 1 for values in record["methods"].values())
    assert "ASAG" in capsys.readouterr().out


def test_methods_differ_and_repeat():
    pipeline, drawn = shipped_mmdit.load_pipeline(), quality.captions_for(2, 0)
    options = {"guidance_scale": 1.0, "steps": 3, "seed": 1}

    def images(name: str) -> torch.Tensor:
        with tqdm(disable=True) as bar:
            return demo.generate(pipeline, drawn.labels, demo.METHODS[name], bar, **options)

    results = {name: images(name) for name in demo.METHODS}
    names = list(results)
    for index, name in enumerate(names):
        assert torch.equal(images(name), results[name])
        for other in names[:index]:
            assert (results[name] - results[other]).abs().max() > 1e-3


def test_too_few_samples_and_unknown_commands_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--samples", "3"])
    assert "--samples: 3; allowed: at least 8" in capsys.readouterr().err
    assert main(["dmeo"]) == 2
    assert main([]) == 2
    assert "usage: python -m asag COMMAND" in capsys.readouterr().err
    assert main(["--help"]) == 0
