"""The Triton kernels, interpreted on a CPU, against the dense reference in float64; and when they are used."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from asag import attention
from asag.kernel_choice import KernelChoice, named_implementation

# In a process of its own: Triton reads TRITON_INTERPRET when it is imported.
SCRIPT = """
import json, math, sys
import torch
from asag import kernels
from asag.attention import adversarial_sinkhorn_attention
from asag.kernel_choice import by_kernels

found = []
generator = torch.Generator().manual_seed(0)
for dtype, width, n, m, gain, normalize in json.loads(sys.argv[1]):
    def heads(tokens, gain):
        made = torch.randn(2, tokens, 2, width, generator=generator) * math.sqrt(gain)
        return made.to(getattr(torch, dtype)).transpose(1, 2)
    query, key, value = heads(n, gain), heads(m, gain), heads(m, 1.0)
    out = by_kernels(kernels, query, key, value, -1 / math.sqrt(width), 2, normalize)
    given = (each.double() for each in (query, key, value))
    expected = adversarial_sinkhorn_attention(*given, normalize=normalize, impl="dense")
    assert out.dtype == query.dtype and out.shape == expected.shape
    found.append(float((out.double() - expected).norm() / expected.norm()))
print(json.dumps(found))
"""
BOUNDS = {"float16": 4e-3, "bfloat16": 2e-2, "float32": 2e-5}
CASES = [
    ("float16", 64, 70, 131, 2.0, "rows"),
    ("float16", 64, 70, 131, 30.0, "rows"),
    ("float16", 40, 33, 33, 8.0, "columns"),
    ("float16", 16, 1, 5, 2.0, "rows"),
    ("float16", 256, 20, 20, 2.0, "rows"),
    ("bfloat16", 80, 65, 65, 2.0, "rows"),
    ("bfloat16", 160, 64, 64, 8.0, "columns"),
    ("float32", 40, 50, 40, 2.0, "columns"),
    ("float32", 128, 64, 64, 2.0, "rows"),
]


def test_interpreted_kernels_are_the_dense_reference() -> None:
    pytest.importorskip("triton", reason="the kernels are interpreted by the package triton")
    command = [sys.executable, "-c", SCRIPT, json.dumps(CASES)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, env=environment)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.splitlines()[-1])
    assert [case for case, error in zip(CASES, errors, strict=True) if not error < BOUNDS[case[0]]] == []


class Kernels:
    """A double of the kernels' module whose attention is off by `wrong`, or fails with `error`."""

    def __init__(self, wrong: float = 0.0, error: Exception | None = None) -> None:
        self.wrong, self.error, self.calls = wrong, error, 0

    def half_sweep(self, query: Tensor, key: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        return query.new_zeros(query.shape[0] * query.shape[1], query.shape[2])

    def biased_attention(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
        self.calls += 1
        if self.error:
            raise self.error
        return attention._by_torch(query, key, value, scale, 2, None, "rows") * (1 + self.wrong)


@pytest.fixture
def tensors() -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (torch.randn(1, 2, 9, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    return query, key, value


def chosen(monkeypatch: pytest.MonkeyPatch, kernels: Kernels) -> KernelChoice:
    choice: Any = KernelChoice()
    choice.module, choice.off = kernels, False
    monkeypatch.setattr(choice, "suits", lambda query, value: not choice.off)
    monkeypatch.setattr(attention, "KERNELS", choice)
    found: KernelChoice = choice
    return found


def run(tensors: tuple[Tensor, Tensor, Tensor], impl: str = "auto") -> Tensor:
    return attention._on_device(*tensors, -0.25, 2, None, "rows", impl)


def test_a_first_result_that_agrees_is_the_last_that_is_compared(
    monkeypatch: pytest.MonkeyPatch, tensors: tuple[Tensor, Tensor, Tensor]
) -> None:
    kernels = Kernels()
    choice = chosen(monkeypatch, kernels)
    expected = run(tensors, "streaming")
    assert kernels.calls == 0
    torch.testing.assert_close(run(tensors), expected)
    kernels.wrong = 0.5  # no longer looked at
    torch.testing.assert_close(run(tensors), expected * 1.5)
    assert not choice.off


@pytest.mark.parametrize(
    ("kernels", "reason"),
    [
        (Kernels(wrong=0.01), "their first result differs by 0.01"),
        (Kernels(wrong=float("nan")), "their first result differs by nan"),
        (Kernels(error=RuntimeError("no compiler")), "RuntimeError: no compiler"),
    ],
)
def test_what_is_amiss_switches_the_kernels_off_once(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tensors: tuple[Tensor, Tensor, Tensor],
    kernels: Kernels,
    reason: str,
) -> None:
    choice = chosen(monkeypatch, kernels)
    expected = run(tensors, "streaming")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            torch.testing.assert_close(run(tensors), expected)
    assert choice.off
    assert kernels.calls == 1
    assert [record.getMessage() for record in caplog.records] == [f"ASAG doesn't use its Triton kernels: {reason}"]


def test_memory_that_ran_out_is_no_fault_of_the_kernels(
    monkeypatch: pytest.MonkeyPatch, tensors: tuple[Tensor, Tensor, Tensor]
) -> None:
    choice = chosen(monkeypatch, Kernels(error=torch.cuda.OutOfMemoryError("full")))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        run(tensors)
    assert not choice.off


def test_they_are_for_cuda_and_known_dtypes() -> None:
    choice = KernelChoice()
    choice.off = False
    query = torch.zeros(1, 1, 4, 64)
    assert not choice.suits(query, query)
    double: Any = SimpleNamespace(device=SimpleNamespace(type="cuda"), dtype=torch.float64, shape=query.shape)
    assert not choice.suits(double, query)


def test_the_environment_names_what_auto_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert named_implementation("auto") == "auto"
    monkeypatch.setenv("ASAG_IMPL", "streaming")
    assert named_implementation("auto") == "streaming"
    assert named_implementation("dense") == "dense"
    monkeypatch.setenv("ASAG_IMPL", "fast")
    with pytest.raises(ValueError, match="ASAG_IMPL: 'fast'; allowed: auto, dense, streaming, triton"):
        named_implementation("auto")
