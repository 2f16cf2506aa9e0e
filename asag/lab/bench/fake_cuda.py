"""CUDA code on a machine without CUDA: fake tensors that say "cuda", and a record of what the device is asked to do.

    with FakeCuda() as cuda:
        query = torch.empty(1, 20, 1024, 64, device="cuda", dtype=torch.float16)
        with cuda.recording() as record:
            adversarial_sinkhorn_attention(query, query, query)
    record.kernels, record.waits, record.peak, record.sdpa, record.seconds(GPUS["4090"])

Nothing is computed: shapes, dtypes, strides, devices and lifetimes are real, numbers aren't. Besides torch's
FakeTensorMode it takes three things:
- c10's table of device guards has no entry for CUDA in torch's CPU wheel, and code that asks for one ends the process
  (indexing, group norm). The guard of "meta", which does nothing, is put in its place.
- SDPA chooses its kernel as CUDA does (asag.lab.bench.fake_sdpa).
- What reads a number off the device (item, bool, tolist, equal, nonzero) is answered by a function, and recorded.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from asag.attention_kernels import ATTENTION_KERNELS, FEATURES, padded
from asag.kernel_choice import KERNELS
from asag.lab.bench.fake_costs import NO_KERNEL, costs
from asag.lab.bench.fake_kernels import FakeKernels
from asag.lab.bench.fake_sdpa import Sdpa, takes
from asag.lab.bench.roofline import Allocation, Op, Record

aten = torch.ops.aten
CUDA, META, DEVICE_TYPES = 1, 14, 15  # c10::DeviceType
REGISTRY = "_ZN3c104impl26device_guard_impl_registryE"
# Builds with CUDA need a real device for fake tensors of one in torch 2.9 and before, and any build in torch 2.1.
WITHOUT_DEVICE = hasattr(torch._C, "_ensureCUDADeviceGuardSet") or (
    torch.version.cuda is None and hasattr(torch._C, "_set_only_lift_cpu_tensors")
)
READS = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero")
FOLDERS = ("/asag/", "/tests/")

# A read number: told the operation's name and the tensor.
Answer = Callable[[str, Tensor], Any]


def plausible(name: str, tensor: Tensor) -> Any:
    """What a tensor's number is taken for: True, 1, or 20.0."""
    if tensor.dtype == torch.bool or name == "equal":
        return True
    return 20.0 if tensor.dtype.is_floating_point else 1


def plausible_above_35(name: str, tensor: Tensor) -> Any:
    """The same, with 200.0 for a number: of logits too large for exponentials that nothing is subtracted from."""
    found = plausible(name, tensor)
    return 200.0 if isinstance(found, float) else found


def guard_table() -> Any:
    """c10's table of device guards, by device type.

    Raises RuntimeError where this build of torch doesn't show it (Windows).
    """
    folder = Path(torch.__file__).parent / "lib"
    library = next((folder / name for name in ("libc10.so", "libc10.dylib") if (folder / name).exists()), None)
    if library is None:
        raise RuntimeError("fake tensors of a device: need a Linux or macOS build of torch")
    return (ctypes.c_void_p * DEVICE_TYPES).in_dll(ctypes.CDLL(str(library)), REGISTRY)


def guard_cuda() -> None:
    """Let fake CUDA tensors pass where torch asks for CUDA's device guard. Raises RuntimeError as guard_table does, and
    where this torch is so old that fake tensors need a real device."""
    if torch.cuda.is_available():
        return
    if not WITHOUT_DEVICE:
        raise RuntimeError(f"fake tensors of a device: need a newer torch than {torch.__version__}")
    table = guard_table()
    if not table[CUDA]:
        table[CUDA] = table[META]


def call_site() -> str:
    """The innermost line of the project that runs now: file from the project's folder on, and number."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        for folder in FOLDERS:
            if folder in name and "/lab/bench/fake_" not in name:
                return f"{folder.strip('/')}/{name.rsplit(folder, 1)[1]}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return ""


class Recorder(TorchDispatchMode):
    """Writes every operation of fake CUDA tensors into a record."""

    def __init__(self, record: Record, answer: Answer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.record, self.answer = record, answer
        self.known: dict[int, weakref.finalize[..., Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        given = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        for tensor in given:
            self.keep(tensor)
        if func.namespace == "prim":
            return func(*args, **kwargs)
        on_cuda = any(tensor.device.type == "cuda" for tensor in given)
        if name in READS and on_cuda:
            return self.read(name, given[0])
        if name == "index" and on_cuda:
            args = (args[0], self.counted(args[1]))
        out = func(*args, **kwargs)
        results = [each for each in tree_flatten(out)[0] if isinstance(each, Tensor)]
        if any(tensor.device.type == "cuda" for tensor in [*given, *results]):
            self.write(name, args, kwargs, given, results)
        return out

    def write(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], given: list[Tensor], results: list[Tensor]
    ) -> None:
        """Record an operation that ran."""
        site = call_site()
        for tensor in results:
            self.keep(tensor, name, site)
        waits = self.copy_waits(args, kwargs, given, results) if name in ("_to_copy", "copy_") else ""
        cost = costs(name, args, kwargs, given, results)
        if cost.kernels or waits:
            source = given[0] if given else results[0]
            shape = tuple(results[0].shape) if results else ()
            op = Op(name, site, cost.kernels, cost.flops, cost.exps, cost.moved, source.dtype, shape, waits)
            self.record.ops.append(op)

    @staticmethod
    def copy_waits(args: tuple[Any, ...], kwargs: dict[str, Any], given: list[Tensor], results: list[Tensor]) -> str:
        source, target = given[-1].device.type, results[0].device.type
        without_waiting = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        return f"{source} to {target}" if source != target and not without_waiting else ""

    def counted(self, indices: list[Tensor | None]) -> list[Tensor | None]:
        """A boolean index becomes numbers first, and the host waits for their count."""
        found: list[Tensor | None] = []
        for index in indices:
            masked = index is not None and index.dtype == torch.bool
            found.extend(self.read("nonzero", index).unbind(1) if masked and index is not None else [index])
        return found

    def read(self, name: str, tensor: Tensor) -> Any:
        site = call_site()
        before = self.record.ops[-1] if self.record.ops else None
        # tolist reads number by number here, and all at once on a device: one wait.
        if before is None or (before.waits, before.site) != (name, site) or name != "_local_scalar_dense":
            self.record.ops.append(Op(name, site, 1, 0, 0, 0, tensor.dtype, tuple(tensor.shape), name))
        value = self.answer(name, tensor)
        if name == "nonzero":
            return torch.empty(int(value), tensor.ndim, dtype=torch.int64, device=tensor.device)
        return bool(value) if name == "equal" else value

    def keep(self, tensor: Tensor, name: str = "", site: str = "") -> None:
        """Count a storage as live until it is freed; with a name it is a new allocation."""
        if tensor.device.type != "cuda":
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known[key] = weakref.finalize(storage, self.forget, key, size)
        self.record.live += size
        self.record.peak = max(self.record.peak, self.record.live)
        if name and name not in NO_KERNEL - {"empty", "new_empty", "empty_like", "empty_strided"}:
            self.record.allocations.append(Allocation(size, name, tuple(tensor.shape), tensor.dtype, site))

    def forget(self, key: int, size: int) -> None:
        del self.known[key]
        self.record.live -= size


def nothing_to_try(*given: object) -> bool:
    """In place of AttentionKernels.trusts. A mock would keep the tensors that it is asked about."""
    return True


class FakeCuda:
    """While entered, `torch.empty(..., device="cuda")` and all that follows is fake. `sm`: the architecture, 89 for an
    RTX 4090 and 90 for an H100. With `triton` the operator uses doubles of its Triton kernels. `without` names torch's
    attention kernels that this build of torch lacks (of "flash" some builds for Windows do)."""

    def __init__(self, sm: int = 89, triton: bool = False, without: tuple[str, ...] = ()) -> None:
        self.sm, self.triton, self.without = sm, triton, without
        self.stack = ExitStack()
        self.record: Record | None = None

    def __enter__(self) -> FakeCuda:
        guard_cuda()
        entered: AbstractContextManager[Any]
        for entered in (
            FakeTensorMode(allow_non_fake_inputs=True),
            torch.no_grad(),
            Sdpa(self.sm, lambda: self.record),
            mock.patch.object(torch.cuda, "get_rng_state", return_value=None),
            mock.patch.object(torch.cuda, "get_device_capability", return_value=divmod(self.sm, 10)),
            mock.patch.object(KERNELS, "off", not self.triton),
            mock.patch.object(KERNELS, "module", FakeKernels(lambda: self.record)),
            mock.patch.object(KERNELS, "to_compare", return_value=False),
            mock.patch.object(ATTENTION_KERNELS, "off", set()),
            mock.patch.object(ATTENTION_KERNELS, "trusts", nothing_to_try),
            mock.patch.object(ATTENTION_KERNELS, "can_use", self.can_use),
            mock.patch.object(torch.cuda, "set_rng_state", return_value=None),
        ):
            self.stack.enter_context(entered)
        return self

    def __exit__(self, *raised: Any) -> None:
        self.stack.__exit__(*raised)

    def can_use(self, kernel: str, query: Tensor, value: Tensor) -> bool:
        """In place of torch's own word on its kernels, which needs a card."""
        like = query.new_empty(1, 1, FEATURES, padded(query.shape[3]) + FEATURES)
        values = like if kernel == "flash" else like[..., : value.shape[3]]
        return kernel not in self.without and takes(kernel, like, like, values, None, self.sm)

    @contextmanager
    def with_triton(self, there: bool) -> Iterator[None]:
        """While open, there are Triton kernels or not, whatever this was made with."""
        with mock.patch.object(KERNELS, "off", not there):
            yield

    @contextmanager
    def recording(self, answer: Answer = plausible, held: Sequence[Tensor] = ()) -> Iterator[Record]:
        """While open, write down what is asked of the device. `held` are there already and count as live."""
        self.record = Record()
        recorder = Recorder(self.record, answer)
        for tensor in held:
            recorder.keep(tensor)
        try:
            with recorder:
                yield self.record
        finally:
            self.record = None


def as_fake_subclass(tensor: FakeTensor, cls: type[Tensor]) -> Tensor:
    """Tensor.as_subclass, which refuses fake tensors: `cls` may be Tensor, or a subclass that works by
    __torch_function__, such as asag.branch's boundary."""
    with torch._C.DisableTorchFunctionSubclass():
        alias: Tensor = aten.alias.default(tensor)
    alias.__class__ = FakeTensor if cls is Tensor else fake_subclass(cls)
    return alias


@cache
def fake_subclass(cls: type[Tensor]) -> type[Tensor]:
    return type(cls.__name__, (cls, FakeTensor), {})
