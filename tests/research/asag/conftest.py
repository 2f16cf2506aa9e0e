"""What the tests of this folder share."""

import pytest
import torch

from research import arguments
from research.asag import evaluate, sampling
from research.asag.cells import Cell, Plan, guided
from research.asag.sampling import Run


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


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
