"""The kit for a machine with a GPU, on the CPU and tiny: its parts, the process that runs them, and the page."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from asag.lab.bench import cli
from asag.lab.bench.device import accuracy, branch, counters, doubles, kernels, layer, part, steps, times, watch
from asag.lab.bench.device import cli as device_cli
from asag.lab.bench.device.cli import CARD_SECONDS, PARTS, part_names, slug
from asag.lab.bench.device.lines import NothingToMeasure
from asag.lab.bench.device.page import page
from asag.lab.bench.device.run import Outcome, Part, run_part
from asag.lab.bench.fake_cuda import FakeCuda
from asag.lab.bench.fake_step import subclasses_of_fake_tensors
from asag.lab.bench.measure import Meter, Variant
from asag.lab.bench.shapes import QUICK_OPERATORS
from asag.operators import QueryBlur, Sinkhorn
from asag.precision import float32_setting
from tests.on_device import OnDevice

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]


def python(name: str, code: str, seconds: float = 60.0) -> Part:
    """A part that is some lines of Python; `path` is the file for its lines."""
    return Part(name, f"Part {name}", (sys.executable, "-c", f"import sys, time; path = sys.argv[1]\n{code}"), seconds)


GOOD = 'open(path, "w").write(\'{"ok": true}\\n\')'


def test_a_part_that_goes_well(tmp_path: Path) -> None:
    found = run_part(python("good", f"{GOOD}; print('done')"), 60, tmp_path)
    assert (found.problem, found.lines, found.output) == ("", [{"ok": True}], "done")


def test_a_part_that_fails_is_told_with_the_last_line_and_keeps_what_it_wrote(tmp_path: Path) -> None:
    found = run_part(python("bad", f"{GOOD}; raise ValueError('no such card')"), 60, tmp_path)
    assert (found.problem, found.lines) == ("ended with 1: ValueError: no such card", [{"ok": True}])
    assert "Traceback" in found.output


def test_a_part_that_hangs_is_stopped_and_so_is_what_it_started(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    wrote = """printf '{"ok": true}\\n{"ok": tr' > "$1"; """
    script = f"{wrote}(echo begun; exec sleep 600) > {pipe} & echo begun; sleep 600"
    found = run_part(Part("hanging", "Hanging", ("sh", "-c", script, "part"), 3), 60, tmp_path)
    assert found.problem == "stopped after 3 s: begun"
    assert found.lines == [{"ok": True}]
    os.set_blocking(reading, True)
    with open(reading, "rb") as pipe_end:
        assert pipe_end.read() == b"begun\n"  # to its end: nobody holds it open any more


def test_a_part_is_not_begun_when_the_time_is_up(tmp_path: Path) -> None:
    assert run_part(python("late", GOOD), 0.5, tmp_path).problem == "not run: the time was up"
    assert not list(tmp_path.iterdir())


def test_a_part_that_a_signal_ends(tmp_path: Path) -> None:
    found = run_part(python("killed", "import os; os.kill(os.getpid(), 11)"), 60, tmp_path)
    assert found.problem == "ended by signal 11"


def test_a_part_with_a_failed_check_says_how_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lines.jsonl"
    assert part.write(iter([{"ok": True}, {"ok": False}, {"skipped": "no"}]), path) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 2 checks failed"
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"ok": True},
        {"ok": False},
        {"skipped": "no"},
    ]
    assert part.write(iter([{"ok": True}]), path) == 0


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NothingToMeasure("no card"), "no card"),
        (ModuleNotFoundError("No module named 'x.y'", name="x.y"), "the package x is missing"),
    ],
)
def test_what_a_part_lacks_is_one_line(
    error: Exception, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lines(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
        raise error
        yield {}

    monkeypatch.setattr(layer, "lines", lines)
    assert part.main(["layer", "cpu", "quick", str(tmp_path / "lines.jsonl")]) == 1
    assert capsys.readouterr().out == f"{told}\n"


def test_the_page_says_which_parts_failed_and_shows_what_each_found() -> None:
    check = {
        "case": "sd15",
        "dtype": "float16",
        "way": "triton, rows",
        "ok": True,
        "error": 1e-3,
        "bound": 4e-3,
        "waits": 0,
    }
    wrong = check | {"ok": False, "error": 6e-3, "case": "sdxl|x"}
    left_out = {"case": "sd3", "dtype": "float16", "way": "triton, rows", "skipped": "not enough memory"}
    step = {
        "case": "sdxl-mid",
        "variant": "cfg",
        "seconds": 0.1,
        "ratio_to_cfg": 1.0,
        "spread": 0.0,
        "memory_to_cfg": 1.0,
    }
    asag = step | {"variant": "asag", "ratio_to_cfg": 1.3391, "spread": 0.0123, "memory_to_cfg": 1.02}
    outcomes = [
        Outcome(Part("accuracy", "Accuracy", (), 1), "1 of 2 checks failed", 3.2, [check, wrong, left_out], "the end"),
        Outcome(Part("steps", "Steps", (), 1), "", 4.0, [step, asag, {"case": "sd3", "skipped": "not enough memory"}]),
        Outcome(Part("counters", "Counters", (), 1), "ended with 1: neither ncu nor nsys is installed"),
    ]
    text = page({"device": "A Card", "date": "2026-11-26T10:00:00"}, "python -m asag bench device", outcomes)
    assert text.startswith("# ASAG on A Card, 2026-11-26\n\n`python -m asag bench device` wrote it.")
    assert "Failed: accuracy, counters." in text
    assert "| triton, rows | float16 | 2 | 1 | 1.5 | 0 | 1 |" in text
    assert "sdxl\\|x" in text
    assert "```\nthe end\n```" in text
    assert "| sdxl-mid |  | 0.1 | 1.339 ± 0.012, 1.020 x memory |" in text
    assert "Left out: sd3, not enough memory." in text
    assert "| counters | Counters | ended with 1: neither ncu nor nsys is installed | 0 |" in text


def test_the_command_writes_page_and_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "found.jsonl"
    monkeypatch.setenv("PATH", "")  # no profiler
    options = ["device", "--device", "cpu", "--quick", "--only", "ou", "--json", str(out)]  # doubles and counters
    assert cli.main(options) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[0]["part"] == "card"
    assert [line["part"] for line in lines if "took_seconds" in line] == ["doubles", "counters"]
    assert [line["ok"] for line in lines if line.get("case") == "tests/test_echo.py"] == [True]
    text = out.with_suffix(".md").read_text()
    assert f"`python -m asag bench {' '.join(options)}` wrote it." in text
    assert "| doubles | Tests of adapters and models on the device | went well |" in text
    assert str(out) in capsys.readouterr().out


def test_a_command_that_is_stopped_writes_what_its_part_has_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[str] = []

    def part_of(name: str, *given: Any) -> Part:
        parts.append(name)
        if name == "card":
            return python("card", 'open(path, "w").write(\'{"device": "a card"}\\n\')')
        return python(name, f"import os\n{GOOD}\nos.kill(os.getppid(), 15); time.sleep(60)")

    monkeypatch.setattr(device_cli, "part_of", part_of)
    out = tmp_path / "found.jsonl"
    assert cli.main(["device", "--only", "er", "--json", str(out)]) == 1  # kernels, and no counters any more
    assert parts == ["card", "kernels"]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line.get("problem") for line in lines] == [None, "interrupted", None]
    assert lines[2] == {"part": "kernels", "ok": True}
    assert "interrupted" in out.with_suffix(".md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_one_line_says_what_is_needed(tmp_path: Path) -> None:
    command = ["sh", str(ROOT / "bench" / "device.sh"), "--json", str(tmp_path / "x.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHON": sys.executable})
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"bench device: ended with 1: torch {torch.__version__} finds no CUDA device; needed: an NVIDIA GPU, its "
        "driver, and a torch with CUDA"
    ]
    assert not list(tmp_path.iterdir())


def test_without_python_one_line_says_so() -> None:
    command = ["sh", str(ROOT / "bench" / "device.sh")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHON": "/none/python"})
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "there is no /none/python; set PYTHON" in done.stderr


def test_the_parts_fit_their_time_and_are_modules() -> None:
    assert sum(seconds for _, _, seconds in PARTS) + CARD_SECONDS <= 25 * 60
    assert set(part_names()) | {"card", "layer"} == set(part.NAMES)
    assert slug("NVIDIA GeForce RTX 4090") == "nvidia-geforce-rtx-4090"


def test_the_operator_is_checked_by_every_way() -> None:
    found = list(accuracy.lines(CPU, True))
    assert {line["way"] for line in found} >= {
        "dense, rows",
        "streaming, rows",
        "triton, rows",
        "pag",
        "seg",
        "uniform",
    }
    assert {"streaming, columns", "streaming, rows, stops early"} <= {line["way"] for line in found}
    done = [line for line in found if "ok" in line]
    assert all(line["ok"] for line in done)
    on_cuda = [
        "triton",
        "streaming by flash",
        "streaming by efficient",
        "streaming by tiles",
        "streaming by small tiles",
    ]
    assert {line["way"].partition(",")[0] for line in found if "skipped" in line} == set(on_cuda)


def test_a_wrong_operator_and_one_that_fails_are_found() -> None:
    case = QUICK_OPERATORS[0]
    given = accuracy.scaled(accuracy.tensors_of(case), 10.0, CPU, torch.float32)
    expected = accuracy.reference(given, case.tokens)

    def checked(operator: Any) -> dict[str, Any]:
        return accuracy.checked(accuracy.Way("streaming", operator), given, case, expected, 2e-5)

    assert checked(Sinkhorn())["ok"]
    assert not checked(Sinkhorn(iterations=3))["ok"]
    assert checked(QueryBlur(sigma=2.0))["ok"] is False
    broken = SimpleNamespace(plain=lambda *given: 1 / 0)
    assert checked(broken) == {"ok": False, "problem": "ZeroDivisionError: division by zero"}


def test_shared_work_is_compared_with_a_whole_pass() -> None:
    found = list(branch.lines(CPU, True))
    assert [line["ok"] for line in found] == [True]
    assert found[0]["push"] > 1e-3
    assert found[0]["of guidance"] < branch.OF_GUIDANCE


def test_times_and_kernels_have_a_line_for_each_variant() -> None:
    found = list(steps.lines(CPU, True))
    assert [line["variant"] for line in found] == ["cfg", "full-pass", "asag", "pag", "seg", "uniform"]
    names = {line["variant"] for line in times.lines(CPU, True)}
    assert names == {"sdpa", "dense", "streaming", "pag", "seg", "uniform"}
    assert all(line["kernels"] > 0 and line["longest"] for line in kernels.lines(CPU, True))
    assert len(list(layer.lines(CPU, True))) == 1


class Event:
    """A double of torch.cuda.Event: each record is a millisecond later."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Event.now += 1.0
        self.at = Event.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return end.at - self.at


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Made-up CUDA tensors, with which everything runs and nothing is computed; and a double of torch.cuda."""

    def empty(made: accuracy.Heads, largest: float, device: torch.device, dtype: torch.dtype) -> accuracy.Heads:
        query, key, value = (torch.empty(each.shape, device=device, dtype=dtype).transpose(1, 2) for each in made)
        return query, key, value

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 34, 1 << 34))
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 1)
    for name in ("synchronize", "set_sync_debug_mode", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *given: None)
    for module in (accuracy, times):
        monkeypatch.setattr(module, "scaled", empty)
    monkeypatch.setattr(accuracy, "lines_of_methods", lambda *given: [])  # computes on the CPU, too
    monkeypatch.setattr("asag.lab.bench.measure.SHORTEST_SECONDS", 1e-4)
    with FakeCuda(90, triton=True) as fake, fake.recording(), subclasses_of_fake_tensors():
        yield torch.device("cuda")


def test_the_parts_run_with_cuda_tensors(card: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "LARGEST_LOGITS", (10.0,))
    checks = list(accuracy.lines(card, True))
    assert {line["dtype"] for line in checks} == {"float16", "bfloat16", "float32"}
    assert [line for line in checks if "problem" in line] == []
    left_out = {(line["way"], line["dtype"]) for line in checks if "skipped" in line}
    assert left_out == {(f"streaming by flash, {normalize}", "float32") for normalize in ("rows", "columns")}
    ways = {line["variant"] for line in times.lines(card, True)}
    assert ways >= {"sdpa", "triton", "streaming", "streaming by efficient", "streaming by tiles", "dense", "seg"}
    monkeypatch.setattr(branch, "OF_PREDICTION", {torch.float16: 1e-2})
    found = list(branch.lines(card, True))
    assert [line["dtype"] for line in found] == ["float16"]
    assert not any("problem" in line for line in found)


NCU = """==PROF== Connected
{"case": "quick"}
"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","7","half_sweep_kernel","gpu__time_duration.sum","usecond","12.3"
"0","7","half_sweep_kernel","launch__registers_per_thread","register/thread","128"
"1","7","biased_attention_kernel","gpu__time_duration.sum","usecond","20.1"
"""


def test_counters_are_read_a_line_a_kernel() -> None:
    assert counters.kernels_of(NCU) == [
        {"kernel": "half_sweep_kernel", "time": "12.3 usecond", "registers": "128 register/thread"},
        {"kernel": "biased_attention_kernel", "time": "20.1 usecond"},
    ]


def test_without_a_profiler_the_part_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert list(counters.lines(CPU, True)) == [{"skipped": "neither ncu nor nsys is installed"}]


def test_a_profiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ncu needs a right that most users lack; a double of it."""
    tool = tmp_path / "ncu"
    tool.write_text("#!/bin/sh\necho '==ERROR== ERR_NVGPUCTRPERM: no permission'\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(NothingToMeasure, match="ncu ended with 1: ==ERROR== ERR_NVGPUCTRPERM"):
        list(counters.lines(CPU, True))


def report(outcome: str, reason: str = "", name: str = "test_x") -> Any:
    """A double of pytest's."""
    return SimpleNamespace(when="call", outcome=outcome, nodeid=name, longreprtext=f"def\nE   {reason}\nE  no")


def test_failed_tests_are_named_with_their_reason() -> None:
    counter = doubles.Counter()
    for each in (report("failed", "assert 1 == 2"), report("passed")):
        counter.pytest_runtest_logreport(each)
    expected = {"ok": False, "passed": 1, "failed": 1, "skipped": 0, "failures": {"test_x": "assert 1 == 2"}}
    assert counter.line() == expected


def test_tests_that_lack_a_package_are_left_out_and_not_failed() -> None:
    counter = doubles.Counter()
    counter.pytest_collectreport(report("failed", "ModuleNotFoundError: No module named 'ldm.modules'"))
    assert counter.line() == {"skipped": "needs ldm"}
    counter.pytest_runtest_logreport(report("passed"))
    assert counter.line() == {"ok": True, "passed": 1, "failed": 0, "skipped": 1, "missing": ["ldm"]}
    # What the project itself has is no package that a machine may lack.
    counter.pytest_collectreport(report("failed", "ModuleNotFoundError: No module named 'asag.none'"))
    assert not counter.line()["ok"]


def test_a_file_of_tests_has_a_process_of_its_own(tmp_path: Path) -> None:
    def line(text: str) -> dict[str, Any]:
        file = tmp_path / "test_made.py"
        file.write_text(text)
        return doubles.line_of(file, CPU)[0]

    counts = {"case": "test_made.py", "passed": 1, "failed": 0, "skipped": 0}
    assert line("def test_it():\n    print('{}')\n") == counts | {"ok": True}
    assert line("import os\nos.kill(os.getpid(), 11)\n") == {
        "case": "test_made.py",
        "ok": False,
        "problem": "ended by signal 11",
    }


def test_a_check_that_breaks_the_device_is_the_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = [{"case": str(number), "way": "triton", "ok": number != 1} for number in range(3)]
    assert part.write(iter(checks), tmp_path / "one", CPU) == 1
    monkeypatch.setattr(part, "is_lost", lambda device: True)
    assert part.write(iter(checks), tmp_path / "two", CPU) == 1
    assert [len((tmp_path / name).read_text().splitlines()) for name in ("one", "two")] == [3, 2]
    told = "the device was broken by 1, triton; what comes after it wasn't run"
    assert capsys.readouterr().out.splitlines()[-1] == told


def test_tests_make_their_tensors_on_the_device() -> None:
    """On "meta", the only other device that every machine has: it shows where a tensor is, not what is in it."""
    generator = torch.Generator().manual_seed(0)
    with OnDevice("meta"):
        made = [torch.zeros(2), torch.randn(2, generator=generator), torch.empty(2).normal_(generator=generator)]
        named = torch.randn(2, generator=generator, device="cpu")
    assert [each.device.type for each in made] == ["meta"] * 3
    assert named.device.type == "cpu"
    with OnDevice("cpu"):
        same = torch.randn(2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(same, torch.randn(2, generator=torch.Generator().manual_seed(0)))


def test_numpy_reads_the_devices_tensors_for_all_but_asag(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, by a count of what is brought there."""
    copied: list[torch.Tensor] = []

    def cpu(tensor: torch.Tensor) -> torch.Tensor:
        copied.append(tensor)
        return tensor

    def in_module(name: str, code: str) -> Any:
        made = {"__name__": name, "np": np, "torch": torch, "tensor": tensor}
        exec(code, made)
        return made["found"]

    tensor = torch.ones(2)
    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    for code in ("found = np.array(tensor)", "found = tensor.numpy()", "found = np.stack([tensor])"):
        with OnDevice("cpu"):
            counts = []
            for name in ("diffusers.made_up", "asag.made_up"):
                copied.clear()
                assert (in_module(name, code) == 1).all()
                counts.append(len(copied))
        assert counts == [1, 0]
    with OnDevice("meta"):
        made = [in_module(name, "found = torch.zeros(2)").device.type for name in ("asag.made_up", "asag.lab.made_up")]
    assert made == ["cpu", "meta"]


def test_on_a_device_float32_isnt_tf32() -> None:
    owner = getattr(torch.backends.cudnn, "conv", torch.backends.cudnn)
    name, full = float32_setting(owner)
    before = getattr(owner, name)
    with OnDevice("cpu"):
        assert getattr(owner, name) == full
    assert getattr(owner, name) == before


def test_warnings_of_the_log_are_kept() -> None:
    with watch.told("asag") as log:
        logging.getLogger("asag.kernel_choice").warning("off: %s", "no")
        logging.getLogger("asag.kernel_choice").info("on")
    assert log == ["off: no"]


def test_the_clock_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    runs: list[int] = []
    assert Meter(CPU, 2, clock="events").time(Variant(lambda: runs.append(1), steps=2), 5) == 1e-3 / 10
    assert len(runs) == 5
