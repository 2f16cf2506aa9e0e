"""The attention operator against SDPA, in the self-attention shapes of the models: time and peak memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from asag.lab.bench.measure import MIB, Meter, Variant, record
from asag.operators import Sinkhorn


@dataclass(frozen=True)
class Shape:
    """Self-attention of one image. With text tokens it is a joint sequence, in which image→image alone is perturbed."""

    case: str
    tokens: int
    heads: int
    head_dim: int
    text: int = 0

    @property
    def square_bytes(self) -> int:
        """One n x n float32 tensor of all heads."""
        return self.heads * (self.tokens + self.text) ** 2 * 4


# Each resolution's self-attention from the finest tokens to the middle block; n is in the name.
SHAPES = (
    Shape("sd15-512-n4096", 4096, 8, 40),
    Shape("sd15-512-n1024", 1024, 8, 80),
    Shape("sd15-512-n256", 256, 8, 160),
    Shape("sd15-512-n64", 64, 8, 160),
    Shape("sd15-1024-n16384", 16384, 8, 40),
    Shape("sdxl-1024-n4096", 4096, 10, 64),
    Shape("sdxl-1024-n1024", 1024, 20, 64),
    Shape("sdxl-1536-n9216", 9216, 10, 64),
    Shape("sdxl-1536-n2304", 2304, 20, 64),
    Shape("sd3-1024-n4096", 4096, 24, 64),
    Shape("sd3-1024-joint-n4096", 4096, 24, 64, text=154),
    Shape("flux-1024-n4096", 4096, 24, 128),
    Shape("flux-1024-joint-n4096", 4096, 24, 128, text=512),
)
QUICK_SHAPES = (
    Shape("quick-n256", 256, 2, 16),
    Shape("quick-n512", 512, 4, 16),
    Shape("quick-joint-n64", 64, 2, 16, text=8),
)
QUICK_DENSE_BYTES = 8 * MIB

# As measured: the logits, their sum with a potential, and two more inside logsumexp.
DENSE_TENSORS = 4


def shapes(quick: bool) -> tuple[Shape, ...]:
    return QUICK_SHAPES if quick else SHAPES


def peer(query: Tensor, key: Tensor, value: Tensor, iterations: int = 2) -> Tensor:
    """The dense form as peers write it: the paper's Eq. 7 and 8, scaling vectors of a whole kernel exp(-λ q kᵀ).

    In their favour heads are split here, and the plan is multiplied by n; both are missing where it was seen. It ends
    on a column update, as normalize="columns" does. It overflows where a logit goes below -88.
    """
    tokens = query.shape[2]
    kernel = torch.exp(query.float() @ key.float().transpose(-1, -2) * (-1 / math.sqrt(query.shape[3])))
    columns = torch.full_like(kernel[..., :1, :], 1 / tokens)
    for _ in range(iterations):
        rows = 1 / (tokens * (kernel @ columns.transpose(-1, -2)))
        columns = 1 / (tokens * (rows.transpose(-1, -2) @ kernel))
    return (tokens * (rows * kernel * columns) @ value.float()).to(query.dtype)


def variants_of(shape: Shape, query: Tensor, key: Tensor, value: Tensor) -> dict[str, Variant]:
    """SDPA and its rivals on the same tensors; of the joint sequences peers have no form."""
    streaming, dense = Sinkhorn(impl="streaming"), Sinkhorn(impl="dense")
    runs: dict[str, Callable[..., Tensor]] = {"sdpa": F.scaled_dot_product_attention}
    if shape.text:
        image = slice(0, shape.tokens)
        runs |= {"streaming": partial(streaming.joint, image=image), "dense": partial(dense.joint, image=image)}
    else:
        runs |= {"streaming": streaming.plain, "dense": dense.plain, "peer": peer}
    return {name: Variant(partial(run, query, key, value)) for name, run in runs.items()}


def measure(
    meter: Meter, quick: bool = False, only: str = "", dense_bytes: int = 3 * 1024 * MIB
) -> Iterator[dict[str, Any]]:
    """A record per shape and variant; forms whose n x n tensors exceed `dense_bytes` are said to be skipped."""
    dtype = torch.float16 if meter.device.type == "cuda" else torch.float32
    limit = min(dense_bytes, QUICK_DENSE_BYTES) if quick else dense_bytes
    for shape in shapes(quick):
        if only in shape.case:
            yield from measure_shape(meter, shape, dtype, limit)


def measure_shape(meter: Meter, shape: Shape, dtype: torch.dtype, limit: int) -> Iterator[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    size = (1, shape.heads, shape.tokens + shape.text, shape.head_dim)
    tensors = (torch.randn(size, generator=generator).to(meter.device, dtype) for _ in range(3))
    variants = variants_of(shape, *tensors)
    needed = DENSE_TENSORS * shape.square_bytes
    skipped = [name for name in variants if name in ("dense", "peer") and needed > limit]
    chosen = {name: variant for name, variant in variants.items() if name not in skipped}
    times = meter.rounds(chosen)
    for name, variant in chosen.items():
        yield record("operator", shape.case, name, times, base="sdpa") | {
            "peak_mib": round(meter.peak_bytes(variant) / MIB, 2),
            "square_mib": round(shape.square_bytes / MIB, 2),
        }
    for name in skipped:
        reason = f"needs about {needed / MIB:.0f} MiB, the limit is {limit / MIB:.0f} MiB"
        yield {"bench": "operator", "case": shape.case, "variant": name, "skipped": reason}
