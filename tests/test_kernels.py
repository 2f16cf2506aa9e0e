"""The Triton kernels, interpreted on a CPU, against the dense reference in float64."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from asag.kernel_choice import HEAD_DIMS
from asag.lab.bench.compiled import launch_of

pytest.importorskip("triton", reason="the kernels are interpreted by the package triton")
kernel_launch = pytest.importorskip("asag.kernel_launch")

SIDES = ("BLOCK_N", "BLOCK_M", "D1", "D2", "E1", "E2")
BOUNDS = {"float16": 4e-3, "bfloat16": 2e-2, "float32": 2e-5}
HALF, BRAIN, SINGLE = ({"dtype": name} for name in BOUNDS)
# Tiles have 32 to 128 rows and 16 to 64 columns: the sizes have whole tiles, parts of one, and a single token.
CASES: dict[str, dict[str, Any]] = {
    "several tiles": HALF | {"width": 64, "n": 70, "m": 131},
    "large logits": HALF | {"width": 64, "n": 33, "gain": 300.0},
    "large logits in float32": SINGLE | {"width": 64, "n": 33, "gain": 30.0},
    "one query": HALF | {"width": 16, "n": 1, "m": 5},
    "one key": HALF | {"width": 16, "n": 5, "m": 1},
    "widest heads": HALF | {"width": 256, "n": 20},
    "an odd width": SINGLE | {"width": 23, "n": 20, "value_width": 71},
    "columns": HALF | {"width": 40, "n": 33, "normalize": "columns"},
    "columns in float32": SINGLE | {"width": 40, "n": 50, "m": 40, "normalize": "columns"},
    "bfloat16 of 80": BRAIN | {"width": 80, "n": 65},
    "bfloat16 of 160": BRAIN | {"width": 160, "n": 64, "normalize": "columns"},
    "float32 of 128": SINGLE | {"width": 128, "n": 64},
    "heads in a row": HALF | {"width": 40, "n": 17, "layout": "contiguous"},
    "tokens innermost": SINGLE | {"width": 40, "n": 17, "layout": "transposed"},
    "heads that stop": SINGLE | {"width": 40, "n": 20, "gain": 6.0, "iterations": 5, "stops": True},
    "columns of heads that stop": HALF
    | {"width": 40, "n": 20, "gain": 6.0, "iterations": 5, "stops": True, "normalize": "columns"},
    "text first": HALF | {"width": 64, "n": 33, "text": (9, 0)},
    "text last": BRAIN | {"width": 40, "n": 20, "text": (0, 70)},
    "text around": SINGLE | {"width": 80, "n": 20, "text": (3, 5), "gain": 30.0},
    "one image token": SINGLE | {"width": 128, "n": 1, "text": (2, 0)},
    "a mask for all": HALF | {"width": 40, "n": 20, "text": (3, 40), "mask": "a row"},
    "Hopper, heads of 40": HALF | {"width": 40, "n": 70, "m": 131, "hopper": True},
    "Hopper, heads of 80 by columns": BRAIN | {"width": 80, "n": 65, "normalize": "columns", "hopper": True},
    "Hopper, text around heads of 40": HALF | {"width": 40, "n": 33, "text": (3, 5), "hopper": True},
    "Hopper, float32": SINGLE | {"width": 40, "n": 33, "hopper": True},
    "a mask for each": SINGLE | {"width": 16, "n": 20, "text": (33, 3), "mask": "each"},
}


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    command = [sys.executable, "-m", "tests.interpreted_kernels", json.dumps(list(CASES.values()))]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    folder = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=580, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, map(float, done.stdout.split()), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_interpreted_kernels_are_the_dense_reference(case: str, errors: dict[str, float]) -> None:
    assert errors[case] < BOUNDS[CASES[case]["dtype"]]


@pytest.mark.parametrize("kind", ["half_sweep", "attention", "joint"])
@pytest.mark.parametrize("width", [16, 23, 32, 40, 64, 80, 128, 160, 256])
def test_on_hopper_no_side_of_a_tile_of_half_precision_is_below_64(kind: str, width: int) -> None:
    """There Triton makes programs that read out of bounds of sides of 16 and 32."""
    launch = launch_of("sm_90", kind, torch.float16, width)
    sides = {name: value for name, value in launch.constants.items() if name in SIDES}
    assert sides.keys() >= {"BLOCK_N", "BLOCK_M", "D1", "D2"}
    assert all(value >= 64 for name, value in sides.items() if name not in ("D2", "E2"))
    assert launch.constants["D2"] == launch.constants.get("E2", 0) == 0
    assert launch.constants["D1"] >= width


def test_other_cards_split_heads_and_so_does_float32_on_hopper() -> None:
    assert launch_of("sm_89", "half_sweep", torch.float16, 40).constants["D2"] == 16
    assert launch_of("sm_90", "half_sweep", torch.float32, 40).constants["D2"] == 16


@pytest.mark.parametrize(
    ("capability", "hip", "hopper"),
    [((8, 0), None, False), ((8, 9), None, False), ((9, 0), None, True), ((12, 0), None, False), ((9, 0), "6", False)],
)
def test_the_card_chooses(
    capability: tuple[int, int], hip: str | None, hopper: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AMD's cards have a capability, too."""
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert kernel_launch.tiling_of(torch.device("cpu")) is kernel_launch.USUAL
    expected = kernel_launch.HOPPER if hopper else kernel_launch.USUAL
    assert kernel_launch.tiling_of(torch.device("cuda", 0)) is expected


@pytest.mark.parametrize("tiling", ["USUAL", "HOPPER"])
@pytest.mark.parametrize("kind", ["sweep", "attention", "joint"])
@pytest.mark.parametrize("bytes_of_an_element", [2, 4])
def test_tiles_are_what_triton_takes_for_each_width_that_suits(
    tiling: str, kind: str, bytes_of_an_element: int
) -> None:
    """Sides and warps are powers of two, sides of products at least 16; the table ends with the widest heads."""
    tiles = getattr(getattr(kernel_launch, tiling), kind)[bytes_of_an_element]
    assert max(tiles) == HEAD_DIMS[-1]
    assert all(width % 32 == 0 for width in tiles)
    for rows, columns, warps in tiles.values():
        assert {each & (each - 1) for each in (rows, columns, warps)} == {0}
        assert min(rows, columns) >= 16
        assert warps in (4, 8)


def test_a_width_is_split_into_powers_of_two() -> None:
    """On usual cards the largest that it holds and a rest of at least 16; on Hopper one, of at least 64."""
    for width in HEAD_DIMS:
        first, rest = kernel_launch.split_width(width, kernel_launch.USUAL.least)
        assert first == max(2**power for power in range(9) if 2**power <= width)
        assert rest == min(each for each in (0, 16, 32, 64, 128) if first + each >= width)
        whole = min(each for each in (64, 128, 256) if each >= width)
        assert kernel_launch.split_width(width, kernel_launch.HOPPER.least) == (whole, 0)


@pytest.mark.parametrize(
    ("width", "value_width", "widest"), [(16, 16, 64), (64, 65, 128), (129, 40, 160), (161, 8, 256)]
)
def test_a_tile_is_that_of_the_wider_of_query_and_value(width: int, value_width: int, widest: int) -> None:
    """A wider table entry would be right and slow, a narrower one may not fit."""
    query, key, value, out = (
        torch.empty(1, 2, 8, each, dtype=torch.float16, device="meta") for each in (width, width, value_width, width)
    )
    bias, usual = torch.empty(2, 8, device="meta"), kernel_launch.USUAL
    launches = (
        (usual.attention, kernel_launch.biased_attention_launch(usual, query, key, value, bias, 1.0, out)),
        (usual.joint, kernel_launch.joint_attention_launch(usual, query, key, value, bias, 1.0, 0, None, out)),
    )
    for tiles, launch in launches:
        found = launch.constants["BLOCK_N"], launch.constants["BLOCK_M"], launch.options["num_warps"]
        assert found == tiles[2][widest]


def test_the_kernels_keep_to_what_triton_2_1_has() -> None:
    """A1111 brings Triton 2.1, Forge 2.3. Both can't be had for each Python, so what they lack is looked for."""
    tree = ast.parse((Path(__file__).parents[1] / "asag" / "kernels.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    dots = [call for call in calls if ast.unparse(call.func) == "tl.dot"]
    assert {(len(call.args), *(each.arg for each in call.keywords)) for call in dots} == {(2, "allow_tf32")}
    assert {ast.unparse(each.value) for call in dots for each in call.keywords} == {"False"}
    assert {ast.unparse(call.func) for call in calls} & {"tl.exp2", "tl.log2"} == set()
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        assert any(each.annotation is None for each in function.args.args), f"{function.name}: all is compiled in"
