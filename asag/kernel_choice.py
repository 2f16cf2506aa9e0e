"""Whether the Triton kernels are used: where a card and a package allow it, and only as long as nothing is amiss."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
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

# Offsets within a head are 32 bits in the kernels, and a grid has no more rows of programs.
LARGEST_OFFSET, MOST_HEADS = 2**31, 2**16 - 1

# Device, dtype, head dimensions of query and value, and what else is compiled in.
Signature = tuple[torch.device, torch.dtype, int, int, Hashable]


class DeviceLost(RuntimeError):
    """CUDA works no more in this process: no other way to compute is left."""


class KernelChoice:
    """The kernels' module once it is loaded, and what they have been tried on in this process."""

    def __init__(self) -> None:
        self.module: ModuleType | None = None
        self.off = importlib.util.find_spec("triton") is None
        self.reason = "the package triton isn't installed" if self.off else ""
        self.compared: set[Signature] = set()

    def suits(self, query: Tensor, key: Tensor, value: Tensor) -> bool:
        """Whether these tensors may go to the kernels."""
        if self.off or query.device.type != "cuda" or query.dtype not in DTYPES:
            return False
        if query.shape[3] not in HEAD_DIMS or value.shape[3] not in HEAD_DIMS:
            return False
        if query.shape[0] * query.shape[1] > MOST_HEADS:
            return False
        if any(each.shape[2] * each.stride(2) >= LARGEST_OFFSET for each in (query, key, value)):
            return False
        return torch.version.hip is not None or torch.cuda.get_device_capability(query.device) >= LEAST_CAPABILITY

    def run(
        self,
        query: Tensor,
        value: Tensor,
        compiled_in: Hashable,
        by_kernels: Callable[[ModuleType], Tensor],
        by_torch: Callable[[], Tensor],
    ) -> Tensor:
        """What `by_kernels` makes of the kernels' module; the first result for a kind of tensors is compared with that
        of `by_torch`, for which the host waits. Where they fail or differ, that is the answer, the log has a line, and
        the kernels are off until the process ends. Raises DeviceLost where they fail and take CUDA with them."""
        signature = (query.device, query.dtype, query.shape[3], value.shape[3], compiled_in)
        first = self.to_compare(signature)
        found = self.tried(by_kernels, query.device, first)
        if found is not None and not first:
            return found
        expected = by_torch()
        return found if found is not None and self.agrees(signature, found, expected) else expected

    def tried(self, by_kernels: Callable[[ModuleType], Tensor], device: torch.device, first: bool) -> Tensor | None:
        """What the kernels give, or None. A kernel's error shows when the host waits for it: the `first` time here,
        and not in a call of another's."""
        try:
            if self.module is None:
                self.module = importlib.import_module("asag.kernel_launch")
                logger.info("ASAG uses its Triton kernels (%s=streaming switches them off)", VARIABLE)
            found = by_kernels(self.module)
            if first:
                wait(device)
            return found
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # a driver, a compiler: whatever it is, there is another way
            self.fail(error, device)
            return None

    def fail(self, error: Exception, device: torch.device) -> None:
        """Switch the kernels off for an error. Raises DeviceLost where they took CUDA with them."""
        self.switch_off(first_line(error))
        if is_lost(device):
            raise DeviceLost(
                f"the GPU failed while ASAG's Triton kernels ran ({first_line(error)}); restart with "
                f"{VARIABLE}=streaming in the environment, which switches them off"
            ) from error

    @contextmanager
    def loss_named(self) -> Iterator[None]:
        """Around a whole generation: an error after which CUDA works no more, on a device that the kernels run on,
        becomes DeviceLost. No step waits for them, so a broken one shows in any later call, in CUDA's own words."""
        try:
            yield
        except DeviceLost:
            raise
        except Exception as error:
            devices = set() if self.off else {device for device, *_ in self.compared}
            for device in devices:
                if is_lost(device):
                    self.fail(error, device)
            raise

    def to_compare(self, signature: Signature) -> bool:
        """Whether this is the first of its kind, whose result has to be compared."""
        return signature not in self.compared

    def agrees(self, signature: Signature, found: Tensor, expected: Tensor) -> bool:
        """Compare a result with the torch path's; a difference, or an error, switches the kernels off."""
        try:
            wide = expected.float()
            difference = float((found.float() - wide).norm() / wide.norm().clamp_min(1e-30))
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # such as that of another shape
            self.fail(error, found.device)
            return False
        if not difference <= DIFFERENCE[found.dtype]:
            self.switch_off(f"their first result differs by {difference:.2g}")
            return False
        self.compared.add(signature)
        return True

    def switch_off(self, reason: str) -> None:
        self.off, self.reason = True, reason
        logger.warning("ASAG doesn't use its Triton kernels: %s", reason)

    def in_use(self) -> str:
        """Which implementation attends on CUDA, and why, in words for a person."""
        named = os.environ.get(VARIABLE, "auto")
        if named not in ("auto", "triton"):
            return f"{named}: {VARIABLE} says so"
        if self.off:
            return f"streaming: {self.reason}"
        if self.compared:
            return "triton"
        return "not known yet: Triton's kernels are tried with the first guided step on a suitable GPU"


def first_line(error: Exception) -> str:
    """An error in one line: CUDA's have several."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def wait(device: torch.device) -> None:
    """Until all is done that a CUDA device was asked to do. Raises RuntimeError where some of it failed."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def is_lost(device: torch.device) -> bool:
    """Whether CUDA works no more: after an illegal access every call fails, until the process ends."""
    try:
        wait(device)
    except RuntimeError:
        return True
    return False


def named_implementation(impl: str) -> str:
    """`impl`, or where it is "auto" what ASAG_IMPL says. Raises ValueError for a name that isn't one."""
    named = os.environ.get(VARIABLE, "auto") if impl == "auto" else impl
    if named not in IMPLEMENTATIONS:
        raise ValueError(f"{VARIABLE}: {named!r}; allowed: {', '.join(IMPLEMENTATIONS)}")
    return named


# What was found amiss in this process holds for all of it.
KERNELS = KernelChoice()
