"""What was measured beside what was aimed at: a text table, and a chart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

Record = dict[str, Any]

# The n x n tensors are what memory is compared with from this size on: below, the tiles are as large as they.
SQUARE_FROM_MIB = 30.0
COLUMNS = ("bench", "case", "variant", "ratio", "spread", "pairs", "seconds", "peak MiB", "of full pass", "target")
COLOURS = {"full-pass": "#9a9a9a", "asag": "#2458a6", "streaming": "#2458a6", "dense": "#d08a2e", "peer": "#9a9a9a"}


class Target(NamedTuple):
    """At most this much of a field."""

    field: str
    limit: float


def targets(found: Record) -> list[Target]:
    """What the project set itself for a record."""
    bench, case, variant = found["bench"], found["case"], found["variant"]
    if bench == "operator" and variant == "streaming":
        memory = [Target("peak_mib", found["square_mib"] / 4)] if found["square_mib"] > SQUARE_FROM_MIB else []
        return [Target("ratio_to_sdpa", 3.0), *memory]
    if bench != "step" or variant != "asag":
        return []
    if case.endswith("-fast"):
        return [Target("ratio_to_cfg", 1.20)]
    if case.endswith("-controlnet"):
        return [Target("ratio_to_cfg", 1.25), Target("share_of_full_pass", 0.68)]
    if "ratio_to_whole" in found:
        # A target of 1 would be missed by noise alone.
        return [Target("ratio_to_whole", 1.05)]
    at_most = [Target("ratio_to_cfg", 1.36)] if case.endswith("-mid") else []
    return [*at_most, Target("share_of_full_pass", 0.68)]


def ratio_of(found: Record) -> float | None:
    return next((value for name, value in found.items() if name.startswith("ratio_to_")), None)


def judged(found: Record) -> str:
    """The targets of a record and whether they were reached."""
    return ", ".join(
        f"{target.field} <= {target.limit:.4g} {'reached' if found[target.field] <= target.limit else 'MISSED'}"
        for target in targets(found)
        if found.get(target.field) is not None
    )


def row(found: Record) -> list[str]:
    if "skipped" in found:
        return [found["bench"], found["case"], found["variant"], "skipped: " + found["skipped"]]
    middle = ratio_of(found)
    numbers = [(middle, ".3f"), (found.get("spread"), ".3f"), (found.get("pairs"), "d"), (found.get("seconds"), ".4g")]
    numbers += [(found.get("peak_mib"), ".1f"), (found.get("share_of_full_pass"), ".3f")]
    cells = ["" if value is None else format(value, spec) for value, spec in numbers]
    return [found["bench"], found["case"], found["variant"], *cells, judged(found)]


def table(records: Sequence[Record]) -> str:
    """Every record with its targets, then the paper's Table 4 beside the same methods here."""
    rows = [list(COLUMNS), *(row(found) for found in records if found["bench"] != "table-4")]
    widths = (
        [max(len(cells[column]) for cells in rows if len(cells) == len(COLUMNS)) for column in range(3)]
        + [8] * 5
        + [13]
    )
    lines = []
    for cells in rows:
        padded = [
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, [*widths, 0], strict=False))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join([*lines, *table_4(records)])


def table_4(records: Sequence[Record]) -> Iterator[str]:
    """The time of CFG, PAG, SEG and ASAG as ratios to CFG: the paper's, and ours in the middle block."""
    paper = {found["variant"]: found for found in records if found["bench"] == "table-4"}
    if not paper:
        return
    yield f"\nTime (memory, weights included) as ratios to CFG:\n{'':22}" + "".join(f"{name:>16}" for name in paper)
    for title, case in (
        ("the paper's Table 4", "paper"),
        ("here, sd15-mid", "sd15-mid"),
        ("here, sdxl-mid", "sdxl-mid"),
    ):
        found = {each["variant"]: each for each in records if each["case"] == case}
        if found:
            pairs = ((found[name]["ratio_to_cfg"], found[name]["memory_to_cfg"]) for name in paper)
            yield f"{title:22}" + "".join(f"{f'{time:.3f} ({memory:.3f})':>16}" for time, memory in pairs)


def read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def chart(records: Sequence[Record], path: Path) -> None:
    """Steps and operators as bars, with what the project aims at."""
    benches = {bench: [found for found in records if found["bench"] == bench] for bench in ("step", "operator")}
    panels = [(bench, chosen) for bench, chosen in benches.items() if chosen]
    if not panels:
        raise ValueError("no line of the benches step and operator to draw; allowed: a file that --json wrote")
    variants = {"step": ("full-pass", "asag"), "operator": ("peer", "dense", "streaming")}
    tallest = max(len({found["case"] for found in chosen}) for _, chosen in panels)
    figure = Figure(figsize=(5.2 * len(panels), 1.6 + 0.36 * tallest), layout="constrained")
    for axes, (bench, chosen) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(axes, chosen, variants[bench])
        if bench == "step":
            axes.set(title="A guided step", xlabel="time, to a step with CFG alone", xlim=(1, None))
        else:
            axes.set(title="The attention operator", xlabel="time, to SDPA (logarithmic)", xscale="log", xlim=(1, None))
            axes.set_xticks((1, 2, 5, 10, 20, 50), ("1", "2", "5", "10", "20", "50"))
            axes.minorticks_off()
    figure.savefig(path, dpi=110)


def draw(axes: Any, records: Sequence[Record], variants: Sequence[str]) -> None:
    """Bars with their interquartile range, one group per case, the first on top; a tick where a target is."""
    cases = list(dict.fromkeys(found["case"] for found in records))
    height = 0.8 / len(variants)
    for number, variant in enumerate(variants):
        drawn = [found for found in records if found["variant"] == variant and ratio_of(found) is not None]
        places = [cases.index(found["case"]) + (number - (len(variants) - 1) / 2) * height for found in drawn]
        spreads = [found["spread"] / 2 for found in drawn]
        axes.barh(
            places, [ratio_of(found) for found in drawn], height, xerr=spreads, color=COLOURS[variant], label=variant
        )
        limits = [next((t.limit for t in targets(f) if t.field.startswith("ratio")), None) for f in drawn]
        for place, limit in zip(places, limits, strict=True):
            if limit is not None:
                axes.plot([limit, limit], [place - height / 2, place + height / 2], color="#c02020", linewidth=2)
    axes.plot([], [], color="#c02020", linewidth=2, label="target, at most")
    axes.set_yticks(range(len(cases)), cases, fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.1))
