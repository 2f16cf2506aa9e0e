"""What one operation costs a CUDA device: kernels, FLOP, exponentials and bytes, from its name and its tensors."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from asag.lab.bench.fake_sdpa import flash_width

NO_KERNEL = {
    "view", "_unsafe_view", "expand", "transpose", "t", "permute", "slice", "select", "unsqueeze", "squeeze", "alias",
    "detach", "split", "split_with_sizes", "chunk", "unbind", "as_strided", "unfold", "diagonal", "empty", "empty_like",
    "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "resize_", "device", "narrow", "reshape",
    "_reshape_alias", "unflatten", "view_as", "set_", "_has_compatible_shallow_copy_type", "numpy_T", "swapaxes",
    "stride", "size", "sym_size", "sym_stride", "sym_numel", "is_contiguous", "movedim",
}  # fmt: skip
SEVERAL_KERNELS = {"native_group_norm": 3, "logsumexp": 6, "constant_pad_nd": 2}
EXPS = {"exp", "exp_", "_softmax", "_safe_softmax", "_log_softmax", "logsumexp"}
PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "baddbmm_": 1}  # where the left factor is among the tensors


class Cost(NamedTuple):
    kernels: int
    flops: float
    exps: float
    moved: float


def size_of(tensor: Tensor) -> int:
    """Bytes that are there: an expanded dimension has one element."""
    kept = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in kept if stride or size == 0) * tensor.element_size()


def costs(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], given: list[Tensor], results: list[Tensor]) -> Cost:
    """`given` and `results`: the tensors among its arguments, in order, and what it returned."""
    same = name == "_to_copy" and bool(results) and results[0] is given[0]
    kernels = 0 if name in NO_KERNEL or same else SEVERAL_KERNELS.get(name, 1)
    if not kernels or not results:
        return Cost(kernels, 0.0, 0.0, 0.0)
    written = {id(tensor) for tensor in results}
    moved: float = sum(map(size_of, results)) + sum(size_of(each) for each in given if id(each) not in written)
    if name.endswith("_") and name not in ("copy_", "zero_", "fill_"):
        moved += size_of(results[0])  # it reads what it overwrites
    exps = max(each.numel() for each in results) if name in EXPS else 0
    if name in PRODUCTS:
        extra, flops, moved = product(name, kwargs, given, results[0], moved)
        return Cost(kernels + extra, flops, 0.0, moved)
    if name == "convolution":
        return Cost(kernels, 2.0 * results[0].numel() * given[1].numel() / given[1].shape[0], 0.0, moved)
    if name in ("_softmax", "_log_softmax") and args[1] % given[0].ndim != given[0].ndim - 1:
        # A multiprocessor keeps a row; a column is read for the maximum, for the sum and for the result.
        moved += 2 * size_of(given[0])
    if name == "logsumexp":
        moved = 4 * size_of(given[0])
    if name.startswith("_scaled_dot_product"):
        query, key, value = given[:3]
        pairs = math.prod(query.shape[:3]) * key.shape[2]
        widths = 2 * flash_width(query.shape[3]) if "flash" in name else query.shape[3] + value.shape[3]
        return Cost(kernels, 2.0 * pairs * widths, pairs, moved)
    return Cost(kernels, 0.0, exps, moved)


def product(
    name: str, kwargs: dict[str, Any], given: list[Tensor], result: Tensor, moved: float
) -> tuple[int, float, float]:
    """Kernels beyond one, FLOP and bytes of a matrix product, perhaps with an addend."""
    left, right = given[PRODUCTS[name]], given[PRODUCTS[name] + 1]
    flops = 2.0 * left.numel() * right.shape[-1]
    if name in ("baddbmm", "baddbmm_") and not kwargs.get("beta", 1):
        return 0, flops, size_of(left) + size_of(right) + size_of(result)
    if name == "baddbmm":
        # The addend is copied into the result, which the product then reads and writes.
        return 1, flops, moved + 2 * size_of(result)
    return 0, flops, moved
