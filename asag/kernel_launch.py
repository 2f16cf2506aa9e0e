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
# By bytes of an element and, up to which they hold, by head dimension. Chosen so that no thread spills registers and a
# program takes no more shared memory than a GeForce has, 99 KiB: `python -m asag bench compile` says so.
SWEEP_TILES: dict[int, dict[int, Tile]] = {
    2: {64: (128, 64, 4), 128: (64, 64, 4), 160: (64, 64, 8), 256: (64, 32, 8)},
    4: {128: (64, 32, 8), 256: (32, 16, 8)},
}
# Of the final attention, whose sums take registers as well.
ATTENTION_TILES: dict[int, dict[int, Tile]] = {
    2: {64: (128, 64, 8), 128: (128, 32, 8), 160: (64, 32, 8), 256: (64, 16, 8)},
    4: {128: (64, 16, 8), 256: (32, 16, 8)},
}
JOINT_TILES: dict[int, dict[int, Tile]] = {2: ATTENTION_TILES[2], 4: {256: (32, 16, 8)}}


class Launch(NamedTuple):
    """A kernel, the grid of its programs, its arguments in order, and by name what is compiled in."""

    kernel: Any
    grid: tuple[int, int]
    given: tuple[Any, ...]
    constants: dict[str, Any]
    options: dict[str, int]

    def start(self) -> None:
        self.kernel[self.grid](*self.given, **self.constants, **self.options)


def split_width(width: int) -> tuple[int, int]:
    """A head dimension as a power of two and the rest, which is padded to one of at least 16 (tl.dot's least)."""
    first = 1 << (width.bit_length() - 1)
    rest = width - first
    return first, max(16, 1 << (rest - 1).bit_length()) if rest else 0


def tile_of(tiles: dict[int, dict[int, Tile]], width: int, itemsize: int) -> Tile:
    by_width = tiles[itemsize]
    return by_width[min(widest for widest in by_width if width <= widest)]


def is_widened(query: Tensor) -> bool:
    """Whether products are computed in float32: the interpreter has none of bfloat16."""
    return os.environ.get("TRITON_INTERPRET") == "1" and query.dtype == torch.bfloat16


def launch(kernel: Any, query: Tensor, given: tuple[Any, ...], tile: tuple[int, int, int], **constants: Any) -> Launch:
    rows, columns, warps = tile
    batch, heads, n, width = query.shape
    first, rest = split_width(width)
    fixed = {"WIDTH": width, "D1": first, "D2": rest, "BLOCK_N": rows, "BLOCK_M": columns}
    grid = (triton.cdiv(n, rows), batch * heads)
    return Launch(kernel, grid, given, constants | fixed | {"WIDENED": is_widened(query)}, {"num_warps": warps})


def half_sweep_launch(
    query: Tensor, key: Tensor, bias: Tensor | None, scale: float, out: Tensor, moving: Tensor | None
) -> Launch:
    n, m = query.shape[2], key.shape[2]
    # What isn't read is any tensor.
    given = (
        query, key, out if bias is None else bias, out if moving is None else moving, out, n, m, query.shape[1],
        scale * LOG2E, math.log(n), *query.stride(), *key.stride(),
    )  # fmt: skip
    tile = tile_of(SWEEP_TILES, query.shape[3], query.element_size())
    present = {"HAS_BIAS": bias is not None, "HAS_MOVING": moving is not None}
    return launch(kernels.half_sweep_kernel, query, given, tile, **present)


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
    half_sweep_launch(query, key, bias, scale, out, moving).start()
    return out


def value_constants(value: Tensor) -> dict[str, int]:
    first, rest = split_width(value.shape[3])
    return {"VALUE_WIDTH": value.shape[3], "E1": first, "E2": rest}


def biased_attention_launch(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float, out: Tensor
) -> Launch:
    given = (
        query, key, value, bias, out, query.shape[2], key.shape[2], query.shape[1], scale * LOG2E,
        *query.stride(), *key.stride(), *value.stride(), *out.stride(),
    )  # fmt: skip
    tile = tile_of(ATTENTION_TILES, max(query.shape[3], value.shape[3]), query.element_size())
    return launch(kernels.biased_attention_kernel, query, given, tile, **value_constants(value))


def biased_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
    """``softmax(scale q kᵀ + bias) v``, (batch, heads, n, e) in the query's dtype, laid out as hosts join heads."""
    batch, heads, n, _ = query.shape
    out = torch.empty(batch, n, heads, value.shape[3], device=query.device, dtype=query.dtype).transpose(1, 2)
    biased_attention_launch(query, key, value, bias, scale, out).start()
    return out


def joint_attention_launch(
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
    tile = tile_of(JOINT_TILES, max(query.shape[3], value.shape[3]), query.element_size())
    return launch(
        kernels.joint_attention_kernel, query, given, tile, HAS_MASK=text_bias is not None, **value_constants(value)
    )


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
    joint_attention_launch(query, key, value, bias, scale, before, text_bias, out).start()
