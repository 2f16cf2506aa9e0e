"""The part "card": which card, driver and versions the figures are of."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import torch

from asag.lab.bench.device.lines import Line, NothingToMeasure
from asag.lab.bench.measure import MIB, machine, version_of

PACKAGES = ("triton", "triton-windows", "xformers")


def lines(device: torch.device, quick: bool) -> Iterator[Line]:
    """One line. Raises NothingToMeasure where torch finds no such device."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise NothingToMeasure(
            f"torch {torch.__version__} finds no CUDA device; needed: an NVIDIA GPU, its driver, and a torch with CUDA"
        )
    threads = torch.get_num_threads()
    facts = machine(device, threads, "events" if device.type == "cuda" else "wall")
    if device.type == "cuda":
        facts |= of_card(device)
    facts |= {package: version_of(package) for package in PACKAGES}
    facts["ASAG_IMPL"] = os.environ.get("ASAG_IMPL", "not set")
    yield facts


def of_card(device: torch.device) -> Line:
    found = torch.cuda.get_device_properties(device)
    return {
        "driver": driver(),
        "CUDA of torch": torch.version.cuda or f"HIP {torch.version.hip}",
        "cuDNN": torch.backends.cudnn.version(),
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory MiB": found.total_memory // MIB,
        "L2 MiB": getattr(found, "L2_cache_size", 0) // MIB,
    }


def driver() -> str:
    """The version of NVIDIA's driver as nvidia-smi tells it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown: nvidia-smi is missing"
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return done.stdout.splitlines()[0].strip() if done.stdout else f"unknown: nvidia-smi ended with {done.returncode}"
