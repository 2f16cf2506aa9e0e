"""`python -m asag bench compile`: what Triton makes of the kernels for cards that aren't there. Compiled, not run.

Each kernel is given to the compiler as it would be at run time, with the same tiles, strides and divisors: from
asag.kernel_launch with tensors without memory. NVIDIA's assembler says how many registers a thread takes and what it
has to spill; AMD's assembly has the same in its notes.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import math
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from asag.kernel_launch import Launch

# Backend, architecture and threads in a warp; bytes of shared memory that one program may have.
TARGETS = {
    "sm_80": ("cuda", 80, 32, 163 << 10),
    "sm_86": ("cuda", 86, 32, 99 << 10),
    "sm_89": ("cuda", 89, 32, 99 << 10),
    "sm_90": ("cuda", 90, 32, 227 << 10),
    "gfx942": ("hip", "gfx942", 64, 64 << 10),
}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.bool: "*i1"}
HEAD_DIMS = (40, 64, 80, 128, 160)
KERNELS = ("half_sweep", "attention", "joint")
BATCH, HEADS, IMAGE, TEXT = 2, 8, 1024, 160
MATRIX_INSTRUCTIONS = ("mma.sync", "wgmma.mma_async", "v_mfma")
# What a thread may spill in the final kernels of float32, whose numbers take twice the registers.
FEW_BYTES = 64
# Products of float32 in 10 bits, as NVIDIA and AMD name them.
LESSER_FLOAT32 = ("tf32", "xf32")

GOOD = "matrix instructions for half precision, no spills there or in a half-sweep, no TF32, shared memory suffices"


@dataclass(frozen=True)
class Compiled:
    """A kernel's program for an architecture: registers of a thread, bytes that a thread spills, bytes of shared memory
    that a program takes, and how many instructions multiply matrices."""

    kernel: str
    target: str
    dtype: str
    head_dim: int
    rows: int
    columns: int
    warps: int
    registers: int
    spilled: int
    shared: int
    matrix_instructions: int
    lesser_float32: bool

    def faults(self) -> list[str]:
        """What mustn't be."""
        found = []
        if self.dtype != "float32" and not self.matrix_instructions:
            found.append("no matrix instructions")
        sweep_or_half = self.kernel == "half_sweep" or self.dtype != "float32"
        if self.spilled > (0 if sweep_or_half else FEW_BYTES):
            found.append(f"spills {self.spilled} bytes a thread")
        if self.shared > TARGETS[self.target][3]:
            found.append(f"takes {self.shared} bytes of shared memory; there are {TARGETS[self.target][3]}")
        if self.lesser_float32:
            found.append("multiplies float32 in 10 bits")
        return [f"{self.name}: {fault}" for fault in found]

    @property
    def name(self) -> str:
        return case_name(self.target, self.dtype, self.head_dim, self.kernel)


def case_name(target: str, dtype: str, head_dim: int, kernel: str) -> str:
    return f"{target}-{dtype}-{head_dim}-{kernel}"


def cases() -> Iterator[tuple[str, str, int, str]]:
    for target in TARGETS:
        for dtype in DTYPES:
            for head_dim in HEAD_DIMS:
                for kernel in KERNELS:
                    yield target, dtype, head_dim, kernel


def case_names(quick: bool) -> list[str]:
    return [case_name(*case) for case in cases()][: len(KERNELS) if quick else None]


def can_compile() -> bool:
    """Whether Triton is there, with NVIDIA's assembler."""
    if importlib.util.find_spec("triton") is None:
        return False
    from triton import knobs

    try:
        return bool(knobs.nvidia.ptxas.path)
    except RuntimeError:  # not found
        return False


def launch_of(target: str, kernel: str, dtype: torch.dtype, head_dim: int) -> Launch:
    """The kernel as it would be started for a layer of a model, in joint attention with text first."""
    from asag import kernel_launch

    def heads(tokens: int) -> Tensor:
        return torch.empty(BATCH, tokens, HEADS, head_dim, dtype=dtype, device="meta").transpose(1, 2)

    potential = torch.empty(BATCH * HEADS, IMAGE, device="meta")
    query, scale = heads(IMAGE), 1 / math.sqrt(head_dim)
    tiling = kernel_launch.HOPPER if target == "sm_90" else kernel_launch.USUAL
    if kernel == "half_sweep":
        return kernel_launch.half_sweep_launch(tiling, query, heads(IMAGE), potential, scale, potential, None)
    if kernel == "attention":
        return kernel_launch.biased_attention_launch(tiling, query, query, query, potential, scale, query)
    whole = heads(TEXT + IMAGE)
    return kernel_launch.joint_attention_launch(tiling, query, whole, whole, potential, scale, TEXT, None, query)


def specialized(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list[Any]]]:
    """Types of the arguments, those compiled in, and which are multiples of 16: as Triton finds them at run time."""
    signature, constants, divisors = {}, dict(launch.constants), {}
    for index, name in enumerate(launch.kernel.arg_names):
        given = launch.given[index] if index < len(launch.given) else None
        if name in constants:
            signature[name] = "constexpr"
        elif isinstance(given, Tensor):
            signature[name] = POINTERS[given.dtype]
        elif isinstance(given, float):
            signature[name] = "fp32"
        elif given == 1:
            signature[name], constants[name] = "constexpr", 1
        else:
            signature[name] = "i32"
        if isinstance(given, Tensor) or (isinstance(given, int) and given % 16 == 0):
            divisors[index,] = [["tt.divisibility", 16]]
    return signature, constants, divisors


def compiled(target: str, dtype: str, head_dim: int, kernel: str) -> Compiled:
    """Compile one kernel; raises what the compiler raises."""
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    launch = launch_of(target, kernel, DTYPES[dtype], head_dim)
    signature, constants, divisors = specialized(launch)
    source = ASTSource(launch.kernel, signature, constexprs=constants, attrs=divisors)
    log = io.StringIO()
    with knobs.nvidia.scope(), knobs.compilation.scope(), redirect_stdout(log):
        knobs.nvidia.dump_ptxas_log = knobs.compilation.always_compile = True
        made = triton.compile(source, target=GPUTarget(*TARGETS[target][:3]), options=launch.options)
    text = made.asm["ptx"] if "ptx" in made.asm else made.asm["amdgcn"]
    registers, spilled = usage(log.getvalue() if "ptx" in made.asm else text)
    return Compiled(
        kernel, target, dtype, head_dim, launch.constants["BLOCK_N"], launch.constants["BLOCK_M"],
        launch.options["num_warps"], registers, spilled, made.metadata.shared,
        sum(text.count(each) for each in MATRIX_INSTRUCTIONS), any(each in text for each in LESSER_FLOAT32),
    )  # fmt: skip


def usage(text: str) -> tuple[int, int]:
    """Registers and spilled bytes from ptxas' log or AMD's assembly, where a spilled register is 4 bytes.

    Raises ValueError where the text doesn't say.
    """
    for registers, spilled, size in (
        (r"Used (\d+) registers", r"(\d+) bytes spill stores", 1),
        (r"\.vgpr_count:\s*(\d+)", r"\.vgpr_spill_count:\s*(\d+)", 4),
    ):
        found = re.search(registers, text), re.search(spilled, text)
        if found[0] and found[1]:
            return int(found[0][1]), int(found[1][1]) * size
    raise ValueError(f"the compiler doesn't tell of registers: {text[-300:]!r}")


def heading() -> str:
    return (
        f"{'target':8}{'kernel':12}{'dtype':10}{'head_dim':>9}{'tile':>9}{'warps':>6}{'registers':>10}{'spilled':>8}"
        f"{'shared KiB':>11}{'matrix':>7}"
    )


def line_of(each: Compiled) -> str:
    return (
        f"{each.target:8}{each.kernel:12}{each.dtype:10}{each.head_dim:>9}{f'{each.rows}x{each.columns}':>9}"
        f"{each.warps:>6}{each.registers:>10}{each.spilled:>8}{each.shared / 1024:>11.1f}{each.matrix_instructions:>7}"
    )


def main(args: argparse.Namespace) -> int:
    """Print the table, and with --json write it. Returns 1 where a kernel has a fault, 2 where none can be compiled."""
    if not can_compile():
        print("asag bench compile: needs the package triton, with ptxas; on Linux: pip install triton", file=sys.stderr)
        return 2
    import triton

    page = [f"Compiled by Triton {triton.__version__} for cards that aren't there; nothing was run on one.", heading()]
    print("\n".join(page))
    found = []
    for case in cases():
        if args.only in case_name(*case) and case_name(*case) in case_names(args.quick):
            found.append(compiled(*case))
            page.append(line_of(found[-1]))
            print(page[-1], flush=True)
    faults = [fault for each in found for fault in each.faults()]
    page.append(
        "\n".join(faults) or f"{len(found)} kernels: matrix instructions for half precision, no spills, no TF32."
    )
    print(page[-1])
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(asdict(each) | {"triton": triton.__version__}) for each in found]
        args.json.write_text("\n".join(lines) + "\n")
        args.json.with_suffix(".md").write_text("```\n" + "\n".join(page) + "\n```\n")
    return 1 if faults else 0
