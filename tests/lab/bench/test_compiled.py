"""`python -m asag bench compile` says what becomes of the Triton kernels, and finds what mustn't be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from asag.lab.bench import cli, compiled
from asag.lab.bench.compiled import Compiled

SOUND = Compiled("attention", "sm_89", "float16", 64, 128, 64, 8, 189, 0, 48 << 10, 128, False)


def test_the_smallest_kernel_compiles_without_a_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not compiled.can_compile():
        pytest.skip("needs triton and ptxas")
    page = tmp_path / "compiled.jsonl"
    assert cli.main(["compile", "--only", "sm_80-float16-64-half_sweep", "--json", str(page)]) == 0
    [line] = [json.loads(text) for text in page.read_text().splitlines()]
    assert (line["target"], line["kernel"], line["head_dim"]) == ("sm_80", "half_sweep", 64)
    assert line["matrix_instructions"] > 0
    assert line["registers"] > 32
    assert line["spilled"] == 0
    assert "nothing was run" in page.with_suffix(".md").read_text()
    assert "1 kernels: matrix instructions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (replace(SOUND, matrix_instructions=0), "no matrix instructions"),
        (replace(SOUND, spilled=16), "spills 16 bytes a thread"),
        (replace(SOUND, shared=100 << 10), "takes 102400 bytes of shared memory; there are 101376"),
        (replace(SOUND, dtype="float32", lesser_float32=True), "multiplies float32 in 10 bits"),
    ],
)
def test_what_mustn_t_be_is_named(wrong: Compiled, fault: str) -> None:
    assert wrong.faults() == [f"sm_89-{wrong.dtype}-64-attention: {fault}"]


def test_what_may_be_is_no_fault() -> None:
    assert not SOUND.faults()
    assert not replace(SOUND, dtype="float32", matrix_instructions=0).faults()
    assert not replace(SOUND, dtype="float32", spilled=64).faults()
    assert replace(SOUND, dtype="float32", spilled=64, kernel="half_sweep").faults()
    assert replace(SOUND, dtype="float32", spilled=65).faults()
    assert not replace(SOUND, target="sm_80", shared=160 << 10).faults()


def test_a_fault_ends_the_command_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(compiled, "can_compile", lambda: True)
    monkeypatch.setattr(compiled, "compiled", lambda *case: replace(SOUND, spilled=4))
    assert cli.main(["compile", "--quick"]) == 1


def test_without_triton_it_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiled, "can_compile", lambda: False)
    assert cli.main(["compile"]) == 2
    assert "needs the package triton" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "ptxas info    : 0 bytes stack frame, 24 bytes spill stores, 8 bytes spill loads\nUsed 168 registers",
            (168, 24),
        ),
        ("  .vgpr_count:     233\n    .vgpr_spill_count: 3\n", (233, 12)),
    ],
)
def test_registers_and_spills_are_read(text: str, found: tuple[int, int]) -> None:
    assert compiled.usage(text) == found


def test_a_compiler_that_tells_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="doesn't tell of registers"):
        compiled.usage("Used 168 registers")
