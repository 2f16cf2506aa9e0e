"""The Triton kernels of asag.kernels with their arguments: which tensors, strides and tiles each is started with."""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from asag import kernels

LOG2E = math.log2(math.e)

# Rows, columns and warps of a tile.
Tile = tuple[int, int, int]
# By bytes of an element and, up to which they hold, by head dimension. Chosen so that no thread spills registers:
# `python -m asag bench compile` says so.
Tiles = dict[int, dict[int, Tile]]


class Tiling(NamedTuple):
    """The tiles of a half-sweep, of the final attention, whose sums take registers as well, and of joint attention.
    `least` columns of a head at least are in one product of half precision, where not 0."""

    sweep: Tiles
    attention: Tiles
    joint: Tiles
    least: int = 0


_HALF_SWEEP: Tiles = {
    2: {64: (128, 64, 4), 128: (64, 64, 4), 160: (64, 64, 8), 256: (64, 32, 8)},
    4: {128: (64, 32, 8), 256: (32, 16, 8)},
}
_ATTENTION: Tiles = {
    2: {64: (128, 64, 8), 128: (128, 32, 8), 160: (64, 32, 8), 256: (64, 16, 8)},
    4: {128: (64, 16, 8), 256: (32, 16, 8)},
}
_JOINT: Tiles = {2: _ATTENTION[2], 4: {256: (32, 16, 8)}}
# A program takes no more shared memory than a GeForce has, 99 KiB.
USUAL = Tiling(_HALF_SWEEP, _ATTENTION, _JOINT)

# On Hopper, what Triton makes of several products of half precision reads shared memory out of bounds or gives wrong
# numbers where a side of a tile is 16 or 32 (Triton's issues 10486 and 11366; seen on an H100 with Triton 3.6). So no
# side is below 64 there, and heads aren't split.
_HOPPER_ATTENTION: Tiles = {2: {64: (128, 64, 8), 128: (128, 64, 8), 256: (64, 64, 8)}, 4: _ATTENTION[4]}
HOPPER = Tiling(
    {2: {64: (128, 64, 4), 128: (64, 64, 4), 256: (64, 64, 8)}, 4: _HALF_SWEEP[4]},
    _HOPPER_ATTENTION,
    {2: _HOPPER_ATTENTION[2], 4: _JOINT[4]},
    least=64,
)
HOPPER_CAPABILITY = 9


def tiling_of(device: torch.device) -> Tiling:
    """The tiles for a card."""
    if device.type != "cuda" or torch.version.hip is not None:
        return USUAL
    return HOPPER if torch.cuda.get_device_capability(device)[0] == HOPPER_CAPABILITY else USUAL


class Launch(NamedTuple):
    """A kernel, the grid of its programs, its arguments in order, and by name what is compiled in."""

    kernel: Any
    grid: tuple[int, int]
    given: tuple[Any, ...]
    constants: dict[str, Any]
    options: dict[str, int]

    def start(self) -> None:
        self.kernel[self.grid](*self.given, **self.constants, **self.options)


def split_width(width: int, least: int = 0) -> tuple[int, int]:
    """A head dimension as a power of two and the rest, which is padded to one of at least 16 (tl.dot's least). Where
    `least` isn't 0, as one power of two of at least so much, with no rest."""
    if least:
        return max(least, 1 << (width - 1).bit_length()), 0
    first = 1 << (width.bit_length() - 1)
    rest = width - first
    return first, max(16, 1 << (rest - 1).bit_length()) if rest else 0


def tile_of(tiles: Tiles, width: int, itemsize: int) -> Tile:
    by_width = tiles[itemsize]
    return by_width[min(widest for widest in by_width if width <= widest)]


def is_widened(query: Tensor) -> bool:
    """Whether products are computed in float32: the interpreter has none of bfloat16."""
    return os.environ.get("TRITON_INTERPRET") == "1" and query.dtype == torch.bfloat16


def least_of(tiling: Tiling, tensor: Tensor) -> int:
    """Products of float32 have no least: they don't go through the matrix instructions."""
    return tiling.least if tensor.element_size() == 2 else 0


def launch(kernel: Any, query: Tensor, given: tuple[Any, ...], tile: Tile, least: int, **constants: Any) -> Launch:
    rows, columns, warps = tile
    batch, heads, n, width = query.shape
    first, rest = split_width(width, least)
    fixed = {"WIDTH": width, "D1": first, "D2": rest, "BLOCK_N": rows, "BLOCK_M": columns}
    grid = (triton.cdiv(n, rows), batch * heads)
    return Launch(kernel, grid, given, constants | fixed | {"WIDENED": is_widened(query)}, {"num_warps": warps})


def half_sweep_launch(
    tiling: Tiling, query: Tensor, key: Tensor, bias: Tensor | None, scale: float, out: Tensor, moving: Tensor | None
) -> Launch:
    n, m = query.shape[2], key.shape[2]
    # What isn't read is any tensor.
    given = (
        query, key, out if bias is None else bias, out if moving is None else moving, out, n, m, query.shape[1],
        scale * LOG2E, math.log(n), *query.stride(), *key.stride(),
    )  # fmt: skip
    tile = tile_of(tiling.sweep, query.shape[3], query.element_size())
    present = {"HAS_BIAS": bias is not None, "HAS_MOVING": moving is not None}
    return launch(kernels.half_sweep_kernel, query, given, tile, least_of(tiling, query), **present)


def half_sweep(
    query: Tensor,
    key: Tensor,
    bias: Tensor | None,
    scale: float,
    out: Tensor | None = None,
    moving: Tensor | None = None,
) -> Tensor:
    """``-log n - LSE_j(scale q kᵀ + bias)``: query (batch, heads, n, d), key (batch, heads, m, d), bias (batch * heads,
    m) float32; returns (batch * heads, n) float32, which is `out` where there is one.

    With `moving` (batch * heads) boolean, the other heads keep what `out` has.
    """
    if out is None:
        out = torch.empty(math.prod(query.shape[:2]), query.shape[2], device=query.device, dtype=torch.float32)
    half_sweep_launch(tiling_of(query.device), query, key, bias, scale, out, moving).start()
    return out


def value_constants(value: Tensor, least: int) -> dict[str, int]:
    first, rest = split_width(value.shape[3], least)
    return {"VALUE_WIDTH": value.shape[3], "E1": first, "E2": rest}


def biased_attention_launch(
    tiling: Tiling, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float, out: Tensor
) -> Launch:
    given = (
        query, key, value, bias, out, query.shape[2], key.shape[2], query.shape[1], scale * LOG2E,
        *query.stride(), *key.stride(), *value.stride(), *out.stride(),
    )  # fmt: skip
    tile = tile_of(tiling.attention, max(query.shape[3], value.shape[3]), query.element_size())
    least = least_of(tiling, query)
    return launch(kernels.biased_attention_kernel, query, given, tile, least, **value_constants(value, least))


def biased_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
    """``softmax(scale q kᵀ + bias) v``, (batch, heads, n, e) in the query's dtype, laid out as hosts join heads."""
    batch, heads, n, _ = query.shape
    out = torch.empty(batch, n, heads, value.shape[3], device=query.device, dtype=query.dtype).transpose(1, 2)
    biased_attention_launch(tiling_of(query.device), query, key, value, bias, scale, out).start()
    return out


def joint_attention_launch(
    tiling: Tiling,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    scale: float,
    before: int,
    text_bias: Tensor | None,
    out: Tensor,
) -> Launch:
    n, m = query.shape[2], bias.shape[1]
    mask_strides = (0, 0, 0, 0) if text_bias is None else text_bias.stride()
    given = (
        query, key, value, bias, out if text_bias is None else text_bias, out, n, m, query.shape[1], before,
        key.shape[2] - m, scale * LOG2E, LOG2E / math.sqrt(query.shape[3]),
        *query.stride(), *key.stride(), *value.stride(), *out.stride(), *mask_strides,
    )  # fmt: skip
    tile = tile_of(tiling.joint, max(query.shape[3], value.shape[3]), query.element_size())
    least = least_of(tiling, query)
    constants = {"HAS_MASK": text_bias is not None} | value_constants(value, least)
    return launch(kernels.joint_attention_kernel, query, given, tile, least, **constants)


def joint_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    scale: float,
    before: int,
    text_bias: Tensor | None,
    out: Tensor,
) -> None:
    """Fill `out`, the rows of image queries: query (batch, heads, n, d); key (batch, heads, keys, d) and value of all
    tokens, of which the image's begin at `before`; bias (batch * heads, m) float32 of the image's keys.

    What SoftMax gives to image keys is spread as ``softmax(scale q kᵀ + bias)`` over them. `text_bias`
    (batch, heads, n, text keys), which may be expanded, is added to the logits of the text keys.
    """
    joint_attention_launch(tiling_of(query.device), query, key, value, bias, scale, before, text_bias, out).start()
