"""The part "accuracy": the operator by each of its ways against float64, in each dtype and shape, and whether it waits.

The reference is Algorithm 1 of the paper in the log domain, written out here for one head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product
from unittest import mock

import torch
from torch import Tensor

from asag import device_scores
from asag.attention_kernels import ATTENTION_KERNELS
from asag.kernel_choice import KERNELS
from asag.lab.bench.device.lines import Line
from asag.lab.bench.device.watch import told, waits_of
from asag.lab.bench.shapes import OperatorCase, operators
from asag.operators import Operator, Sinkhorn, make_operator

BOUNDS = {torch.float16: 4e-3, torch.bfloat16: 2e-2, torch.float32: 2e-5}
# float32 holds a logit, and with it a plan, to so much for each unit of the largest logit.
ROUNDING = 10 * 2**-24
LARGEST_LOGITS = (10.0, 100.0)
SMALL_TILE_BYTES = 1 << 20
ITERATIONS = 2
NO_STEP_IS_LARGER = 1e9
# Query, key and value.
Heads = tuple[Tensor, Tensor, Tensor]
OTHER_METHODS = ("pag", "seg", "uniform")


@dataclass(frozen=True)
class Way:
    """A way to compute: an operator, what has to be open meanwhile, and for which query, key and value it is.
    `may_wait`: it is for reading, not for use."""

    name: str
    operator: Operator
    opened: Callable[[], AbstractContextManager[object]] = nullcontext
    suits: Callable[[Tensor, Tensor, Tensor], bool] = lambda query, key, value: True
    may_wait: bool = False


TORCH_KERNELS = ("flash", "efficient")


@contextmanager
def only(kernel: str, tile_bytes: int = device_scores.DEVICE_TILE_BYTES) -> Iterator[None]:
    """Without Triton, of torch's attention kernels this one alone, or none, and tiles of so many bytes."""
    off = set(TORCH_KERNELS) - {kernel}
    with ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(ATTENTION_KERNELS, off=off, tried=set()))
        stack.enter_context(mock.patch.object(device_scores, "DEVICE_TILE_BYTES", tile_bytes))
        yield


def can_use(kernel: str, query: Tensor, key: Tensor, value: Tensor) -> bool:
    kernels, scale = ATTENTION_KERNELS, 1 / math.sqrt(query.shape[3])
    return kernels.suits(query, value, scale) and kernels.can_use(kernel, query, value)


def is_on_cuda(query: Tensor, key: Tensor, value: Tensor) -> bool:
    return query.device.type == "cuda"


@dataclass(frozen=True)
class Options:
    """Of the operator. `stops`: every head stops after its first iteration, since a step is below the tolerance."""

    normalize: str = "rows"
    stops: bool = False

    @property
    def name(self) -> str:
        return f"{self.normalize}, stops early" if self.stops else self.normalize

    def operator(self, impl: str) -> Sinkhorn:
        tolerance = NO_STEP_IS_LARGER if self.stops else None
        return Sinkhorn(ITERATIONS, normalize=self.normalize, tolerance=tolerance, impl=impl)


PLAIN = Options()


def ways(options: Options = PLAIN) -> list[Way]:
    """Each implementation, and on CUDA what streaming may do: by either of torch's kernels, and by tiles, which hold
    whole heads or not."""
    streaming = options.operator("streaming")
    by_torch = [
        Way(f"streaming by {kernel}", streaming, partial(only, kernel), partial(can_use, kernel))
        for kernel in (TORCH_KERNELS if not options.stops else ())
    ]
    return [
        Way("triton", options.operator("triton"), suits=KERNELS.suits),
        Way("streaming", streaming),
        *by_torch,
        Way("streaming by tiles", streaming, partial(only, ""), is_on_cuda),
        Way("streaming by small tiles", streaming, partial(only, "", SMALL_TILE_BYTES), is_on_cuda),
        Way("dense", options.operator("dense"), may_wait=True),
    ]


def tensors_of(case: OperatorCase) -> Heads:
    """Query, key and value, float32 on the CPU, as hosts lay them out: (batch, tokens, heads, head_dim)."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, case.tokens + case.text, case.heads, case.head_dim)
    query, key, value = (torch.randn(shape, generator=generator) for _ in range(3))
    return query, key, value


def scaled(made: Heads, largest: float, device: torch.device, dtype: torch.dtype) -> Heads:
    """The tensors with heads first; no logit of q kᵀ / √d exceeds `largest`."""
    query, key, _ = made
    bound = float((query.norm(dim=-1).amax() * key.norm(dim=-1).amax()) / math.sqrt(query.shape[-1]))
    query, key, value = (each.to(device, dtype).transpose(1, 2) for each in (query * (largest / bound), *made[1:]))
    return query, key, value


def plan_times_value(logits: Tensor, value: Tensor, options: Options) -> Tensor:
    """Algorithm 1 for one head: logits (n, m), value (m, e), float64."""
    n, m = logits.shape
    columns = torch.zeros(m, dtype=logits.dtype, device=logits.device)
    for _ in range(1 if options.stops else ITERATIONS):
        rows = -math.log(n) - torch.logsumexp(logits + columns, dim=1)
        columns = -math.log(m) - torch.logsumexp(logits + rows[:, None], dim=0)
    if options.normalize == "columns":
        return torch.exp(logits + rows[:, None] + columns + math.log(n)) @ value
    return torch.softmax(logits + columns, dim=1) @ value


def reference(given: Heads, image: int, options: Options = PLAIN) -> Tensor:
    """What attention of a sequence gives whose first `image` tokens are an image, (batch, heads, n, e) in float64, head
    by head. Text attends as ever; of an image token only what it gave to the image is spread anew."""
    out = torch.empty(given[0].shape, dtype=torch.float64, device=given[0].device)
    for batch, head in product(range(out.shape[0]), range(out.shape[1])):
        query, key, value = (each[batch, head].double() for each in given)
        logits = query @ key.T / math.sqrt(query.shape[1])
        spread = plan_times_value(-logits[:image, :image], value[:image], options)
        if image == len(query):
            out[batch, head] = spread
            continue
        weights = torch.softmax(logits, dim=1)
        mass = weights[:image, :image].sum(dim=1, keepdim=True)
        out[batch, head, :image] = weights[:image, image:] @ value[image:] + mass * spread
        out[batch, head, image:] = weights[image:] @ value
    return out


def attended(operator: Operator, given: Heads, case: OperatorCase) -> Tensor:
    if not case.text:
        return operator.plain(*given, case.grid)
    return operator.joint(*given, slice(0, case.tokens), case.grid)


def checked(way: Way, given: Heads, case: OperatorCase, expected: Tensor, bound: float) -> Line:
    """One line: the relative error, its bound, how often the host waited, and what was logged."""
    if not way.suits(*given):
        return {"skipped": "not for these tensors, this card or this torch"}
    try:
        with told("asag") as log, way.opened(), torch.no_grad():
            attended(way.operator, given, case)  # the first result of a kind is compared, for which it waits
            waits, found = waits_of(given[0].device, lambda: attended(way.operator, given, case))
        off = float((found.double() - expected).norm() / expected.norm())  # here a kernel's error shows at the latest
    except torch.cuda.OutOfMemoryError:
        return {"skipped": "not enough memory"}
    except Exception as error:  # whatever a device, a driver or a compiler says: the other checks go on
        return {"ok": False, "problem": f"{type(error).__name__}: {error}"}
    line: Line = {"ok": off < bound and not log and (not waits or way.may_wait), "error": off, "bound": bound}
    line["waits"] = waits
    return line | ({"problem": log[0]} if log else {})


@contextmanager
def forgotten() -> Iterator[None]:
    """What one check finds amiss is no reason to leave the others out."""
    with (
        mock.patch.multiple(KERNELS, off=KERNELS.off, reason=KERNELS.reason, compared=set()),
        mock.patch.multiple(ATTENTION_KERNELS, off=set(ATTENTION_KERNELS.off), tried=set()),
    ):
        yield


def lines_of(case: OperatorCase, largest: float, options: Options, device: torch.device) -> Iterator[Line]:
    made = tensors_of(case)
    for dtype, bound in BOUNDS.items():
        given = scaled(made, largest, device, dtype)
        expected = reference(given, case.tokens, options)
        limit = max(bound, ROUNDING * largest)
        facts = {"case": case.name, "dtype": str(dtype).removeprefix("torch."), "logits": largest}
        for way in ways(options):
            with forgotten():
                yield facts | {"way": f"{way.name}, {options.name}"} | checked(way, given, case, expected, limit)


def lines_of_methods(case: OperatorCase, device: torch.device) -> Iterator[Line]:
    """The other methods against themselves in float64 on the CPU."""
    made = tensors_of(case)
    for dtype, bound in BOUNDS.items():
        given = scaled(made, LARGEST_LOGITS[0], device, dtype)
        facts = {"case": case.name, "dtype": str(dtype).removeprefix("torch."), "logits": LARGEST_LOGITS[0]}
        for method in OTHER_METHODS:
            operator = make_operator(method)
            query, key, value = (each.double().cpu() for each in given)
            expected = attended(operator, (query, key, value), case).to(device)
            yield facts | {"way": method} | checked(Way(method, operator), given, case, expected, bound)


def lines(device: torch.device, quick: bool) -> Iterator[Line]:
    for case in operators(quick):
        for largest in LARGEST_LOGITS:
            yield from lines_of(case, largest, PLAIN, device)
    small = [case for case in operators(quick) if case.tokens <= 1024]
    for options in (Options("columns"), Options(stops=True)):
        yield from lines_of(small[-1], LARGEST_LOGITS[0], options, device)
    for case in small:
        yield from lines_of_methods(case, device)
