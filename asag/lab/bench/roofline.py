"""How long a device would take for what it is asked, from its data sheet: a model, not a measurement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Gpu:
    """FLOP/s by dtype (dense; half precision adds up in float32), bytes/s, exp/s, and the seconds that the host takes
    to launch one kernel."""

    name: str
    half: float
    single: float
    double: float
    bandwidth: float
    exps: float
    launch: float = 4e-6

    def flops(self, dtype: torch.dtype | None) -> float:
        if dtype in (torch.float16, torch.bfloat16):
            return self.half
        return self.double if dtype == torch.float64 else self.single


# Data sheets. exps: 16 a clock and multiprocessor, 132 of them at 1.755 GHz and 128 at 2.52 GHz.
GPUS = {
    "H100": Gpu("H100", 990e12, 67e12, 67e12, 3.35e12, 16 * 132 * 1.755e9),
    "4090": Gpu("RTX 4090", 165e12, 82.6e12, 1.29e12, 1.008e12, 16 * 128 * 2.52e9),
}


@dataclass(frozen=True)
class Op:
    """One operation of the device: `moved` are the bytes that it reads and writes; `waits` says why the host waits for
    it, and is empty where it doesn't."""

    name: str
    site: str
    kernels: int
    flops: float
    exps: float
    moved: float
    dtype: torch.dtype | None
    shape: Shape
    waits: str = ""

    def seconds(self, gpu: Gpu) -> float:
        """The longest of arithmetic, memory traffic, exponentials and launches."""
        work = max(self.flops / gpu.flops(self.dtype), self.moved / gpu.bandwidth, self.exps / gpu.exps)
        return max(work, self.kernels * gpu.launch)


@dataclass(frozen=True)
class Allocation:
    """A tensor's memory, when it was made: bytes, and the operation that made it."""

    size: int
    name: str
    shape: Shape
    dtype: torch.dtype
    site: str


@dataclass
class Record:
    """What was asked of the device. `peak` are bytes, with those of tensors that were there before; `sdpa` counts the
    kernels of scaled_dot_product_attention by name, dtype and head_dim."""

    ops: list[Op] = field(default_factory=list)
    live: int = 0
    peak: int = 0
    allocations: list[Allocation] = field(default_factory=list)
    sdpa: Counter[str] = field(default_factory=Counter)

    @property
    def kernels(self) -> int:
        return sum(op.kernels for op in self.ops)

    @property
    def waits(self) -> list[Op]:
        return [op for op in self.ops if op.waits]

    @property
    def dtypes(self) -> set[torch.dtype]:
        return {each.dtype for each in self.allocations} | {op.dtype for op in self.ops if op.dtype}

    def seconds(self, gpu: Gpu) -> float:
        return sum(op.seconds(gpu) for op in self.ops)

    def of(self, *parts: str) -> Record:
        """Only the operations whose call site has one of `parts` in it."""
        return Record([op for op in self.ops if any(part in op.site for part in parts)])

    def by(self, key: Callable[[Op], Hashable]) -> dict[Hashable, Record]:
        found: dict[Hashable, Record] = {}
        for op in self.ops:
            found.setdefault(key(op), Record()).ops.append(op)
        return found

    def squares(self, rows: int, columns: int) -> list[Allocation]:
        """What was allocated of at least `rows` x `columns` elements for one head or more."""
        return [each for each in self.allocations if each.shape[-2:] in ((rows, columns), (columns, rows))]
