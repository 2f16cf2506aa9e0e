"""The measured figures of a GPU: the pages say what the lines of bench/results say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asag.lab.bench import cuda_table
from asag.lab.bench.device.page import SUMMARIES, plain, table

Line = dict[str, Any]
ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "bench" / "results"
H100 = RESULTS / "2026-11-27-nvidia-h100-80gb-hbm3.jsonl"
PAGES = sorted(RESULTS.glob("*-nvidia-*.jsonl"))


def parts_of(path: Path) -> dict[str, list[Line]]:
    """The lines that each part wrote, without the name of the part; not that of how it went."""
    found: dict[str, list[Line]] = {}
    for line in cuda_table.read(path):
        if "took_seconds" not in line:
            found.setdefault(line.pop("part"), []).append(line)
    return found


def by_case(lines: list[Line]) -> dict[str, dict[str, Line]]:
    found: dict[str, dict[str, Line]] = {}
    for line in lines:
        if line.get("dtype", "float16") == "float16":
            found.setdefault(line["case"], {})[line["variant"]] = line
    return found


def cells(found: dict[str, Line], base: str, names: tuple[str, ...]) -> list[str]:
    return [f"{found[name][f'ratio_to_{base}']:.2f} ± {found[name]['spread']:.2f}" for name in names]


def modelled(case: str) -> float:
    """ASAG with Triton on an H100."""
    lines = cuda_table.read(max(RESULTS.glob("*-cuda-modelled.jsonl")))
    line = cuda_table.found_in(lines, "step", case, "asag", "with")
    assert line
    return float(line["modelled ratio, H100"])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_of_results_has_the_tables_of_its_lines(path: Path) -> None:
    text = path.with_suffix(".md").read_text()
    parts = parts_of(path)
    card = parts.pop("card")[0]
    assert table(["", ""], ([name, value] for name, value in card.items())) in text
    assert [name for name, lines in parts.items() if SUMMARIES.get(name, plain)(lines) not in text] == []


def test_the_measured_tables_of_the_docs_are_those_of_the_lines() -> None:
    text = (ROOT / "docs" / "cost.md").read_text()
    parts = parts_of(H100)
    steps = [
        [
            cuda_table.title_of(case),
            f"{1000 * found['cfg']['seconds']:.0f}",
            *cells(found, "cfg", ("full-pass", "asag", "asag, streaming", "pag", "seg")),
            f"{modelled(case):.2f}",
        ]
        for case, found in by_case(parts["steps"]).items()
    ]
    heads = ["One guided step, compared with CFG", "CFG, ms", "a whole extra pass", "ASAG", "without Triton"]
    assert table([*heads, "PAG", "SEG", "modelled"], steps) in text
    layers = [
        [
            cuda_table.OPERATORS[case],
            f"{1000 * found['sdpa']['seconds']:.2f}",
            *cells(found, "sdpa", ("triton", "streaming", "pag", "seg", "uniform")),
            f"{found['streaming']['peak_mib']:.1f} / {found['triton']['peak_mib']:.1f}",
        ]
        for case, found in by_case(parts["times"]).items()
    ]
    heads = ["One layer, compared with its attention", "attention, ms", "ASAG", "without Triton"]
    assert table([*heads, "PAG", "SEG", "uniform", "peak MiB"], layers) in text


def test_what_the_docs_say_of_checks_and_tests_is_in_the_lines() -> None:
    parts = parts_of(H100)
    cost, checked = ((ROOT / "docs" / name).read_text() for name in ("cost.md", "compatibility.md"))
    done = [line for line in parts["accuracy"] if "ok" in line]
    assert all(line["ok"] for line in done)
    assert f"in {len(done)} checks" in cost
    assert f"in each of {len(done)} checks" in checked
    worst = max(line["error"] / line["bound"] for line in done)
    assert f"the largest error was {worst:.0%} of its bound".replace("%", " %") in " ".join(cost.split())
    assert {line["way"] for line in done if line["waits"]} == {"dense, rows, stops early"}
    passed, failed = (sum(line[name] for line in parts["doubles"]) for name in ("passed", "failed"))
    assert f"- {passed:,} of {passed + failed:,} tests of adapters".replace(",", " ") in checked
    good = sum(line["ok"] for line in parts["branch"])
    assert f"in {good} of {len(parts['branch'])} checks" in checked
