"""The page of a run on a device, in Markdown: which parts failed, then what each found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from asag.lab.bench.device.lines import Line
from asag.lab.bench.device.run import Outcome


def page(facts: Mapping[str, Any], command: str, outcomes: Sequence[Outcome]) -> str:
    """`facts`: of the machine, in order; `outcomes`: of the parts that were tried so far."""
    failed = [outcome.part.name for outcome in outcomes if outcome.problem]
    verdict = f"Failed: {', '.join(failed)}." if failed else "No part failed."
    rows = [[each.part.name, each.part.title, each.problem or "went well", f"{each.seconds:.0f}"] for each in outcomes]
    sections = [
        f"# ASAG on {facts.get('device', 'an unknown device')}, {str(facts.get('date', ''))[:10]}",
        f"`{command}` wrote it. {verdict}",
        table(["", ""], ([name, value] for name, value in facts.items())),
        "## Parts",
        table(["part", "what it does", "result", "seconds"], rows),
        *(section(outcome) for outcome in outcomes if outcome.lines or outcome.problem),
    ]
    return "\n\n".join(sections) + "\n"


def section(outcome: Outcome) -> str:
    """What a part found, and where it failed the end of what it printed."""
    shown = SUMMARIES.get(outcome.part.name, plain)(outcome.lines) if outcome.lines else ""
    parts = [f"## {outcome.part.title}", shown]
    if outcome.problem:
        parts += [f"**{cell(outcome.problem)}**", f"```\n{outcome.output.replace('```', '')}\n```"]
    return "\n\n".join(part for part in parts if part)


def cell(value: object) -> str:
    """As text that stays in its cell."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {cell(each)}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(cell(each) for each in value)
    return " ".join(str(value).replace("|", "\\|").split())


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *([cell(each) for each in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(lines: Sequence[Line]) -> str:
    """A column for each field."""
    heads = list(dict.fromkeys(name for line in lines for name in line))
    return table(heads, ([line.get(name, "") for name in heads] for line in lines))


def checks(lines: Sequence[Line]) -> str:
    """A row for each way and dtype, with the worst error; then what failed or was left out, whole."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["way"], line["dtype"]), []).append(line)
    rows = []
    for (way, dtype), found in groups.items():
        done = [line for line in found if "ok" in line]
        worst = max((line["error"] / line["bound"] for line in done if "error" in line), default="")
        failed, waits = sum(not line["ok"] for line in done), sum(line.get("waits", 0) for line in done)
        rows.append([way, dtype, len(done), failed, worst, waits, len(found) - len(done)])
    heads = ["way", "dtype", "checks", "failed", "worst error / its bound", "waits", "left out"]
    failures = [line for line in lines if line.get("ok") is False]
    return "\n\n".join([table(heads, rows), *([f"Failed:\n\n{plain(failures)}"] if failures else [])])


def times(lines: Sequence[Line]) -> str:
    """A row for each case, a column for each variant: the median ratio of pairs to the first one, with its spread, and
    the memory."""
    done = [line for line in lines if "skipped" not in line]
    variants = list(dict.fromkeys(line["variant"] for line in done))
    rows = []
    for case, dtype in dict.fromkeys((line["case"], line.get("dtype", "")) for line in done):
        found = {line["variant"]: line for line in done if (line["case"], line.get("dtype", "")) == (case, dtype)}
        cells = [time_cell(found[name]) if name in found else "" for name in variants]
        rows.append([case, dtype, found[variants[0]]["seconds"], *cells[1:]])
    heads = ["case", "dtype", f"{variants[0]}, s" if variants else "", *variants[1:]]
    left = [f"Left out: {line['case']}, {line['skipped']}." for line in lines if "skipped" in line]
    return "\n\n".join([table(heads, rows), *left])


def time_cell(line: Line) -> str:
    """ "1.33 ± 0.02, 1.01 x memory" or "3.1 ± 0.1, 5 MiB"."""
    ratio = next(value for name, value in line.items() if name.startswith("ratio_to_"))
    memory = f"{line['memory_to_cfg']:.3f} x memory" if "memory_to_cfg" in line else f"{line['peak_mib']:.0f} MiB"
    return f"{ratio:.3f} ± {line['spread']:.3f}, {memory}"


SUMMARIES: dict[str, Callable[[Sequence[Line]], str]] = {"accuracy": checks, "steps": times, "times": times}
