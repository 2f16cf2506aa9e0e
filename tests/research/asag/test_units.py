"""What the units make of sizes that are known, and that nothing is left in the model."""

import pytest
import torch

from asag.operators import METHODS
from research.asag import unit_spread
from research.asag.sampling import Sampler
from research.asag.sweeps import BLOCKS
from research.asag.units import CFG_SCALES, measure
from tests.support import snapshot


def line_of(method, block, sizes, scale=2.0):
    about = {"plan": "units", "model": "unet", "steps": len(sizes), "pictures": len(sizes[0])}
    return about | {"guidance_scale": scale, "method": method, "block": block, "sizes": sizes}


# Two steps of one picture, in two blocks of which one pushes ten times as far.
LINES = [
    line_of("cfg", "", [[0.2], [0.1]]),
    line_of("asag", "mid", [[0.02], [0.04]]),
    line_of("asag", "out.0", [[0.2], [0.4]]),
]


def test_the_push_beside_cfgs_own_in_each_unit():
    found = {unit: unit_spread.relative(LINES, unit)[2.0, "asag", "mid"] for unit in ("paper", "push", "cfg")}
    assert found["paper"].flatten().tolist() == pytest.approx([0.1, 0.4])
    assert found["push"].flatten().tolist() == pytest.approx(
        [0.02 / 0.021 / 0.2, 0.04 / (0.9 * 0.02 + 0.1 * 0.04 + 0.001) / 0.1]
    )
    assert found["cfg"].flatten().tolist() == pytest.approx([1.0, 0.4 / (0.5 * 0.1 + 0.5 * 0.4)])
    slow = unit_spread.relative(LINES, unit_spread.SLOW)[2.0, "asag", "mid"]
    assert slow.flatten().tolist() == pytest.approx([1.0, 0.4 / (0.9 * 0.1 + 0.1 * 0.4)])


def test_summaries_say_how_far_pushes_lie_apart():
    found = {line["unit"]: line for line in unit_spread.summaries(LINES)}
    assert found["paper"]["blocks"] == pytest.approx(10)
    assert found["cfg"]["blocks"] == pytest.approx(1)
    assert found["paper"]["over_steps"] == pytest.approx(4)
    assert found["cfg"]["over_steps"] == pytest.approx(1.6)
    low, high = torch.quantile(torch.tensor([0.1, 0.4, 1.0, 4.0]), torch.tensor([0.05, 0.95])).tolist()
    assert found["paper"]["spread"] == pytest.approx(high / low, rel=1e-3)
    assert unit_spread.table(list(found.values())).count("\n") == 1 + len(found)


def test_the_scale_that_is_too_much_lies_on_the_line_between_two_that_were_measured():
    def swept(fd, **settings):
        return {
            "condition": "conditional",
            "guidance_scale": 2.0,
            "settings": settings,
            "metrics": {"fd": {"value": fd}},
        }

    lines = [swept(100.0), swept(110.0, blocks="mid", scale=0.5), swept(140.0, blocks="mid", scale=1.5)]
    lines += [swept(130.0, blocks="out.0", scale=0.5), swept(101.0, blocks="in.1", scale=1.5)]
    found = unit_spread.too_much(lines)
    assert found == {"mid": pytest.approx(1.0), "out.0": pytest.approx(0.5 * 25 / 30)}
    limits = unit_spread.limits(lines, LINES)
    assert [(line["unit"], line["smallest"], line["largest"]) for line in limits] == [
        ("paper", 0.417, 1.0),
        ("push", 0.02, 0.0833),
        ("cfg", 0.1, 0.417),
    ]
    rows = unit_spread.limits_table(limits).splitlines()
    assert rows[2:] == [
        "| mid | 1 | 0.02 | 0.1 |",
        "| out.0 | 0.42 | 0.083 | 0.42 |",
        "| largest : smallest | 2.4 | 4.2 | 4.2 |",
    ]


def test_every_method_and_block_is_looked_at_in_every_step_and_the_model_stays_as_it_was(monkeypatch):
    monkeypatch.setattr("research.asag.units.CFG_SCALES", (2.0,))
    sampler = Sampler()
    network = sampler.pipeline("unet").unet
    before = snapshot(network)
    lines = measure(sampler, "unet", pictures=2, steps=2)
    assert snapshot(network) == before
    assert len(lines) == 1 + len(METHODS) * len(BLOCKS["unet"])
    assert all(len(line["sizes"]) == 2 and len(line["sizes"][0]) == 2 for line in lines)
    found = {(line["method"], line["block"]): line["sizes"] for line in lines}
    assert found["asag", "mid"] != found["asag", "out.1"]
    assert len(CFG_SCALES) == 3
