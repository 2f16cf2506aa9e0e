"""Whether the Triton kernels are used: where a card and a package allow it, and only as long as nothing is amiss."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from types import ModuleType

import torch
from torch import Tensor

from asag.attention_arguments import IMPLEMENTATIONS

logger = logging.getLogger(__name__)

VARIABLE = "ASAG_IMPL"
LEAST_CAPABILITY = (8, 0)  # below it Triton makes no matrix instructions of these kernels
HEAD_DIMS = range(16, 257)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# How far the first result may be from the torch path's; each is within half of it of the exact one.
DIFFERENCE = {torch.float16: 8e-3, torch.bfloat16: 4e-2, torch.float32: 1e-3}

Signature = tuple[torch.device, torch.dtype, int, int]


class KernelChoice:
    """The kernels' module once it is loaded, and what they have been tried on in this process."""

    def __init__(self) -> None:
        self.module: ModuleType | None = None
        self.off = importlib.util.find_spec("triton") is None
        self.compared: set[Signature] = set()

    def suits(self, query: Tensor, value: Tensor) -> bool:
        """Whether these tensors may go to the kernels."""
        if self.off or query.device.type != "cuda" or query.dtype not in DTYPES:
            return False
        if query.shape[3] not in HEAD_DIMS or value.shape[3] not in HEAD_DIMS:
            return False
        return torch.version.hip is not None or torch.cuda.get_device_capability(query.device) >= LEAST_CAPABILITY

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, iterations: int, normalize: str
    ) -> Tensor | None:
        """The operator by the kernels, (batch, heads, n, e) in the query's dtype; None, and a line in the log, when
        they fail: then they are off until the process ends."""
        try:
            if self.module is None:
                self.module = importlib.import_module("asag.kernels")
                logger.info("ASAG uses its Triton kernels (%s=streaming switches them off)", VARIABLE)
            return by_kernels(self.module, query, key, value, scale, iterations, normalize)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # a driver, a compiler: whatever it is, there is another way
            self.switch_off(f"{type(error).__name__}: {error}")
            return None

    def to_compare(self, query: Tensor, value: Tensor) -> bool:
        """Whether these are the first of their kind, whose result has to be compared."""
        return self.signature(query, value) not in self.compared

    def agrees(self, found: Tensor, expected: Tensor, value: Tensor) -> bool:
        """Compare the first result with the torch path's; a difference switches the kernels off."""
        wide = expected.float()
        difference = float((found.float() - wide).norm() / wide.norm().clamp_min(1e-30))
        if not difference <= DIFFERENCE[found.dtype]:
            self.switch_off(f"their first result differs by {difference:.2g}")
            return False
        self.compared.add(self.signature(found, value))
        return True

    def switch_off(self, reason: str) -> None:
        self.off = True
        logger.warning("ASAG doesn't use its Triton kernels: %s", reason)

    @staticmethod
    def signature(query: Tensor, value: Tensor) -> Signature:
        return query.device, query.dtype, query.shape[3], value.shape[3]


def by_kernels(
    kernels: ModuleType, query: Tensor, key: Tensor, value: Tensor, scale: float, iterations: int, normalize: str
) -> Tensor:
    """`iterations` sweeps and the product, in 2 iterations + 1 launches. "columns" takes one more half-sweep: it
    rescales row i by ``n exp(f_i + LSE_j(L_ij + g_j))``."""
    columns: Tensor | None = None
    for _ in range(iterations):
        rows: Tensor = kernels.half_sweep(query, key, columns, scale)
        columns = kernels.half_sweep(key, query, rows, scale)
    out: Tensor = kernels.biased_attention(query, key, value, columns, scale)
    if normalize == "columns":
        factor = torch.exp(rows - kernels.half_sweep(query, key, columns, scale))
        out = (out * factor.unflatten(0, query.shape[:2])[..., None]).to(query.dtype)
    return out


def named_implementation(impl: str) -> str:
    """`impl`, or where it is "auto" what ASAG_IMPL says. Raises ValueError for a name that isn't one."""
    named = os.environ.get(VARIABLE, "auto") if impl == "auto" else impl
    if named not in IMPLEMENTATIONS:
        raise ValueError(f"{VARIABLE}: {named!r}; allowed: {', '.join(IMPLEMENTATIONS)}")
    return named


# What was found amiss in this process holds for all of it.
KERNELS = KernelChoice()
