"""Which model's blocks are checked before sampling, and against which setting; on a double of a request."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from asag.blocks import Address, parse_blocks
from asag.hosts.checked import check_blocks, check_file
from asag.hosts.refused import Refused
from asag.models.base import AttentionLayer
from asag.settings import AsagSettings

QUERY = "model.diffusion_model.{}.transformer_blocks.0.attn1.to_q.weight"


class HasMiddle:
    """The double of a family: the loaded model has its middle block and out.1."""

    kinds = ("UNet",)

    def layers(self, model: nn.Module) -> list[AttentionLayer]:
        return [AttentionLayer(Address(*place), model) for place in (("mid", 0, 0), ("out", 1, 0))]

    def default_blocks(self, model: nn.Module) -> Any:
        return parse_blocks("mid")


@pytest.fixture
def info(tmp_path: Path) -> Any:
    """The double of a checkpoint's: one that has its middle block alone."""
    path = tmp_path / "later.safetensors"
    header = json.dumps({QUERY.format("middle_block.1"): {"dtype": "F16"}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return SimpleNamespace(filename=str(path))


def told(p: dict[str, Any], **settings: Any) -> str:
    """What the request is refused with, and its status; nothing where it isn't."""
    try:
        given = AsagSettings(enabled=True, **settings)
        family: Any = HasMiddle()
        check_blocks(nn.Identity(), family, SimpleNamespace(**p), given, [family])
    except Refused as error:
        return f"{error.detail} ({error.status_code})"
    return ""


FIRST = "ASAG settings: blocks: 'out.7'; this model has"
HIRES = "ASAG settings: hires_blocks: 'out.7'; this model has"


@pytest.mark.parametrize(
    ("p", "settings", "message"),
    [
        ({}, {"blocks": "out.7"}, FIRST),
        ({}, {"blocks": "out.1", "hires_blocks": "out.7"}, ""),  # no hires pass
        ({"enable_hr": False}, {"hires_blocks": "out.7"}, ""),
        ({"enable_hr": True}, {"hires_blocks": "out.7"}, HIRES),
        ({"enable_hr": True}, {"blocks": "out.7", "hires_blocks": "mid"}, FIRST),
        ({"enable_hr": True}, {"blocks": "out.7", "hires_blocks": "same"}, FIRST),
        ({"enable_hr": True}, {"blocks": "out.7", "hires_blocks": "mid", "hires": "hires"}, ""),
        ({"enable_hr": True}, {"hires_blocks": "out.7", "hires": "first"}, ""),
        ({"enable_hr": True}, {"blocks": "out.1", "hires_blocks": "mid", "hires": "both"}, ""),
        ({}, {"blocks": "out.7", "scale": 0.0}, ""),
    ],
)
@pytest.mark.parametrize("name", [None, "", "Use same checkpoint"])
def test_the_loaded_models_passes(p: dict[str, Any], settings: Any, message: str, name: Any) -> None:
    found = told(p | {"hr_checkpoint_name": name}, **settings)
    assert (found.startswith(message) and found.endswith(" (422)")) if message else found == ""
    if name is None:
        assert told(p, **settings) == found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hires_blocks": "out.1"}, "ASAG settings: hires_blocks: the hires checkpoint lacks 'out.1'"),
        ({"blocks": "out.1"}, "ASAG settings: blocks: the hires checkpoint lacks 'out.1'"),
        ({"blocks": "out.1", "hires": "first"}, ""),
        ({"blocks": "out.1", "hires_blocks": "mid"}, ""),
        ({"hires_blocks": "out.7", "hires": "first"}, ""),
        ({"hires_blocks": "all"}, ""),
    ],
)
def test_the_hires_checkpoints_file(info: Any, settings: dict[str, Any], message: str) -> None:
    p = {"enable_hr": True, "hr_checkpoint_name": "another", "hr_checkpoint_info": info}
    found = told(p, **settings)
    assert (found.startswith(message) and found.endswith(" (422)")) if message else found == ""
    # Without hires fix what is chosen for it doesn't count; nor does a name whose file isn't known.
    assert told(p | {"enable_hr": False}, **settings) == ""
    assert told(p | {"hr_checkpoint_info": None}, **settings) == ""
    assert told({"enable_hr": True, "hr_checkpoint_name": "another"}, **settings) == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": "out.1"}, "ASAG settings: blocks: the refiner lacks 'out.1'"),
        ({"blocks": "out.1", "hires": "hires"}, ""),
        ({"blocks": "mid", "hires_blocks": "out.1"}, ""),
        ({"blocks": "out.1", "scale": 0.0, "hires_scale": 1.0}, ""),
        ({"blocks": "late"}, ""),
    ],
)
def test_the_refiners_file(info: Any, settings: dict[str, Any], message: str) -> None:
    found = told({"refiner_checkpoint_info": info}, **settings)
    assert (found.startswith(message) and found.endswith(" (422)")) if message else found == ""
    assert told({"refiner_checkpoint_info": None}, **settings) == ""


def test_a_file_that_isnt_read_so_is_no_hindrance(tmp_path: Path) -> None:
    info = SimpleNamespace(filename=str(tmp_path / "missing.ckpt"))
    assert told({"refiner_checkpoint_info": info}, blocks="out.1") == ""


@pytest.fixture
def of_heads(tmp_path: Path) -> Any:
    """The double of a checkpoint's: SD1.5, whose layers have eight heads, cut to its middle block."""
    return saved(
        tmp_path / "sd15.safetensors",
        {
            QUERY.format("middle_block.1"): [1280, 1280],
            QUERY.format("middle_block.1").replace("attn1.to_q", "attn2.to_k"): [1280, 768],
        },
    )


def saved(path: Path, shapes: dict[str, list[int]]) -> Any:
    header = json.dumps({name: {"dtype": "F16", "shape": shape} for name, shape in shapes.items()}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return SimpleNamespace(filename=str(path))


class OfSd15(HasMiddle):
    kinds = ("SD1.5",)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ("mid:h0-7", ""),
        ("mid:aligned", ""),
        ("mid:h8", "the refiner lacks 'mid.0:h8'; mid.0 has: heads 0 to 7"),
        ("auto:h2,9", "the refiner lacks 'mid.0:h2,9'; mid.0 has: heads 0 to 7"),
        ("all:h8", "the refiner lacks 'mid.0:h8'; mid.0 has: heads 0 to 7"),
        ("mid:h1, mid.0:aligned", "the refiner: 'mid.0:h1' and 'mid.0:aligned'; allowed: one of them"),
        ("out.1:h1", "the refiner lacks 'out.1:h1'; this model has: mid"),
    ],
)
def test_heads_that_a_later_model_lacks(of_heads: Any, blocks: str, message: str) -> None:
    assert refused(of_heads, blocks) == (f"ASAG settings: blocks: {message}" if message else "")


def test_heads_where_the_file_does_not_tell_their_number(of_heads: Any, tmp_path: Path) -> None:
    other = saved(tmp_path / "other.safetensors", {QUERY.format("middle_block.1"): [1280, 1280]})
    assert refused(other, "mid:h99") == ""
    # AUTOMATIC1111 takes the number from here.
    (tmp_path / "sd15.yaml").touch()
    assert refused(of_heads, "mid:h99") == ""


def refused(info: Any, blocks: str) -> str:
    """What is said of a list that a file's model lacks."""
    family: Any = OfSd15()
    try:
        check_file(info, AsagSettings(enabled=True, blocks=blocks), False, "the refiner", [family])
    except Refused as error:
        return error.detail
    return ""
