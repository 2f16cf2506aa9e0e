"""Lists that users of sd-perturbed-attention share, read as that extension reads them.

The tables hold what its own function (guidance_utils.py: parse_unet_blocks, March 2026) gave for the UNets of SD1.5,
SDXL and the SDXL refiner as Stability AI publishes them (configs/inference of stablediffusion and generative-models):
what each item selected, or that it raised ValueError.
"""

from __future__ import annotations

import pytest

from asag.blocks import Address, BlocksError, parse_blocks, select
from asag.models.ldm_unet import LdmUnet
from asag.webui.block_map import read
from tests.models.test_ldm_unet import SD15, build

MID = parse_blocks("mid")


def unet(depths_in: dict[int, int], middle: int, depths_out: dict[int, int]) -> list[Address]:
    """Addresses of a UNet, from how many layers each block has."""
    parts = (("in", depths_in), ("mid", {0: middle}), ("out", depths_out))
    return [Address(part, block, layer) for part, depths in parts for block in depths for layer in range(depths[block])]


MODELS = {
    "SD1.5": unet(dict.fromkeys((1, 2, 4, 5, 7, 8), 1), 1, dict.fromkeys(range(3, 12), 1)),
    "SDXL": unet({4: 2, 5: 2, 7: 10, 8: 10}, 10, {0: 10, 1: 10, 2: 10, 3: 2, 4: 2, 5: 2}),
    "refiner": unet(dict.fromkeys((4, 5, 7, 8), 4), 4, dict.fromkeys(range(3, 9), 4)),
}
# What each item is, by model, in ASAG's own addresses; None: it raised.
TABLES: dict[str, dict[str, str | None]] = {
    "SD1.5": {
        "d0": "in.1",
        "d1": "in.2",
        "d2": "in.4",
        "d3": "in.5",
        "d4": "in.7",
        "d5": "in.8",
        "d6": None,
        "m0": "mid",
        "u0": "out.3",
        "u1": "out.4",
        "u2": "out.5",
        "u3": "out.6",
        "u4": "out.7",
        "u5": "out.8",
        "u6": "out.9",
        "u7": "out.10",
        "u8": "out.11",
        "u9": None,
        "d0-3": "in.1, in.2, in.4, in.5",
        "d2.2-9,d3": None,
        "u3.1": None,
        "m0.7": None,
    },
    "SDXL": {
        "d0": "in.4",
        "d1": "in.5",
        "d2": "in.7",
        "d3": "in.8",
        "d4": None,
        "m0": "mid",
        "u0": "out.0",
        "u1": "out.1",
        "u2": "out.2",
        "u3": "out.3",
        "u4": "out.4",
        "u5": "out.5",
        "u6": None,
        "d0-3": "in.4, in.5, in.7, in.8",
        "d2.2-9,d3": "in.7.2-9, in.8",
        "u3.1": "out.3.1",
        "u0.4": "out.0.4",
        "m0.7": "mid.7",
        "m0.0-9": "mid",
        "d0-1.1": "in.4.1, in.5.1",
        "d2.8-10": None,
    },
    "refiner": {
        "d0": "in.4",
        "d3": "in.8",
        "d4": None,
        "m0": "mid",
        "u0": "out.3",
        "u5": "out.8",
        "u6": None,
        "u3.1": "out.6.1",
        "u0.4": None,
        "m0.0-9": None,
    },
}


def selected(model: str, text: str) -> list[Address]:
    return select(parse_blocks(text), [(address, address) for address in MODELS[model]], MID)


@pytest.mark.parametrize(
    ("model", "text", "meant"), [(model, *pair) for model, table in TABLES.items() for pair in table.items()]
)
def test_an_item_selects_what_it_does_there(model, text, meant):
    if meant is None:
        with pytest.raises(BlocksError, match=r"this model has: d0-|has: layers 0 to "):
            selected(model, text)
    else:
        assert selected(model, text) == selected(model, meant)


@pytest.mark.parametrize("model", MODELS)
def test_a_range_may_repeat_the_letter_as_its_readme_has_it(model):
    assert selected(model, "d0-d3") == selected(model, "d0-3") == selected(model, "d0,d1,d2,d3")


@pytest.mark.parametrize(
    ("model", "text"), [(model, text) for model, table in TABLES.items() for text, meant in table.items() if meant]
)
def test_what_is_printed_or_written_means_the_same_when_read_again(model, text):
    blocks = parse_blocks(text)
    assert parse_blocks(str(blocks)) == blocks
    assert selected(model, str(blocks)) == selected(model, text)
    # What the map says that each item is.
    counted = read(text, MODELS[model], MID).counted
    assert selected(model, ", ".join(counted.values())) == selected(model, text)


def test_transformers_have_no_such_blocks():
    flux = [(Address("double", number, 0), number) for number in range(19)]
    with pytest.raises(BlocksError, match=r"^'d4'; this model has: double\.0-18$"):
        select(parse_blocks("d4"), flux, MID)


def test_the_ldm_unet_is_numbered_as_the_table():
    assert [layer.address for layer in LdmUnet().layers(build(SD15))] == MODELS["SD1.5"]
