"""The 2-D experiment's tables, from its JSON lines: the paper's numbers next to ours, and runs of the same reward."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

Record = dict[str, Any]

# Table 1: method, λ or λ₀: reward, diversity, collapse.
PAPER = {
    ("fixed", 1.0): (0.72, 0.89, "No"),
    ("fixed", 5.0): (0.88, 0.63, "No"),
    ("fixed", 20.0): (0.92, 0.21, "Partial"),
    ("fixed", 50.0): (0.93, 0.05, "Yes"),
    ("adaptive", 50.0): (0.90, 0.71, "No"),
}
READINGS = {True: "push times β", False: "push without β"}
READING_COLUMNS = (
    *(("fixed", scale, "constant") for scale in (1.0, 5.0, 20.0, 50.0)),
    ("adaptive", 50.0, "constant"),
    ("adaptive", 50.0, "bell"),
)
FINE = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0)
COARSE = (1.0, 5.0, 20.0, 50.0)
FRONTIER = (
    ("target", "constant", FINE),
    ("fixed", "constant", FINE),
    ("fixed", "bell", (*FINE, 70.0, 100.0, 150.0, 200.0)),
    ("adaptive", "constant", (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 50.0)),
    ("adaptive", "bell", (5.0, 10.0, 20.0, 30.0, 50.0, 100.0)),
    ("clip-gradient", "constant", COARSE),
    ("clip-term", "constant", COARSE),
    ("soft", "constant", COARSE),
    ("threshold", "constant", COARSE),
)
# A line between two λ of FINE runs below the curve by up to about so much.
INTERPOLATION = 0.01


def chosen(records: Iterable[Record], **settings: Any) -> list[Record]:
    """The lines that have all these settings, in their order."""
    return [record for record in records if all(record.get(name) == value for name, value in settings.items())]


def mean(record: Record, metric: str) -> float:
    return float(record["metrics"][metric][0])


def shown(record: Record, metric: str) -> str:
    """A metric as mean ± standard error; large ones by their power of ten."""
    value, error = record["metrics"][metric]
    return (
        f"{value:.1e}" if value >= 1e5 else f"{value:.3f} ± {error:.3f}" if value < 10 else f"{value:.4g} ± {error:.2g}"
    )


def diverged(record: Record) -> bool:
    """Whether the samples flew apart, beyond the unguided ones."""
    return mean(record, "diversity") > 2


def collapse(record: Record) -> str:
    diversity = mean(record, "diversity")
    return "Diverged" if diverged(record) else "Yes" if diversity < 0.1 else "Partial" if diversity < 0.3 else "No"


def name_of(record: Record) -> str:
    bell = ", bell" if record["schedule"] == "bell" else ""
    symbol = "λ₀" if record["method"] == "adaptive" or bell else "λ"
    return f"{record['method']}{bell}, {symbol} = {record['scale']:g}"


def table_1(records: Sequence[Record]) -> Iterator[list[str]]:
    """The paper's rows next to both readings, then what Table 1 doesn't have."""
    for method, schedule, scales in FRONTIER:
        shown_scales = (1, 5, 10, 20, 30, 50) if (method, schedule) == ("fixed", "constant") else (50,)
        for scale in (scale for scale in scales if scale in shown_scales):
            where = {"experiment": "frontier", "method": method, "schedule": schedule, "scale": scale}
            found = [chosen(records, times_beta=times_beta, **where)[0] for times_beta in READINGS]
            paper = PAPER.get((method, scale)) if schedule == "constant" else None
            cells = [f"{paper[0]:.2f}", f"{paper[1]:.2f}", paper[2]] if paper else ["", "", ""]
            for record in found:
                cells += [shown(record, "reward"), shown(record, "diversity"), collapse(record)]
            yield [name_of(found[0]), *cells]


def interpolated(curve: Sequence[Record], reward: float) -> tuple[float, float, float] | None:
    """The curve's diversity at a reward, its slope there and its standard error; None outside the curve."""
    ordered = sorted((record for record in curve if not diverged(record)), key=lambda record: mean(record, "reward"))
    for low, high in itertools.pairwise(ordered):
        start, end = mean(low, "reward"), mean(high, "reward")
        if start <= reward <= end and start < end:
            slope = (mean(high, "diversity") - mean(low, "diversity")) / (end - start)
            error = max(record["metrics"]["diversity"][1] for record in (low, high))
            return mean(low, "diversity") + slope * (reward - start), slope, error
    return None


def against(record: Record, curve: Sequence[Record]) -> tuple[float, float] | None:
    """How much more diverse a run is than `curve` at its reward, with the standard error (noise shared between runs
    makes it smaller than said here); None where the curve doesn't reach that reward."""
    there = interpolated(curve, mean(record, "reward"))
    if there is None:
        return None
    diversity, slope, error = there
    own = record["metrics"]
    return own["diversity"][0] - diversity, math.hypot(own["diversity"][1], slope * own["reward"][1], error)


def matched(records: Sequence[Record]) -> Iterator[list[str]]:
    """The adaptive runs against fixed λ of the same reward."""
    for times_beta in READINGS:
        where = {"experiment": "frontier", "times_beta": times_beta}
        curves = [chosen(records, method="fixed", schedule=schedule, **where) for schedule in ("constant", "bell")]
        for record in chosen(records, method="adaptive", **where):
            differences = [against(record, curve) for curve in curves]
            if any(differences):
                cells = [f"{each[0]:+.3f} ± {each[1]:.3f}" if each else "" for each in differences]
                own = [shown(record, metric) for metric in ("reward", "diversity")]
                yield [READINGS[times_beta], name_of(record), *own, *cells]


def verdict(records: Sequence[Record], schedule: str, curve_schedule: str) -> str:
    """In how many of the matched runs the adaptive scale is more or less diverse than fixed λ."""
    counts = {"more": 0, "less": 0, "as": 0}
    for times_beta in READINGS:
        where = {"experiment": "frontier", "times_beta": times_beta}
        curve = chosen(records, method="fixed", schedule=curve_schedule, **where)
        for record in chosen(records, method="adaptive", schedule=schedule, **where):
            difference = against(record, curve)
            if difference:
                clear = abs(difference[0]) > max(2 * difference[1], INTERPOLATION)
                counts["as" if not clear else "more" if difference[0] > 0 else "less"] += 1
    return f"more diverse in {counts['more']}, less in {counts['less']}, not clearly either in {counts['as']}"


def misfit(found: Sequence[Record]) -> float:
    """The root mean square distance to the rewards and diversities of the paper's fixed rows."""
    gaps = []
    for record in found:
        if record["method"] == "fixed":
            reward, diversity, _ = PAPER["fixed", record["scale"]]
            gaps += [(mean(record, "reward") - reward) ** 2, (mean(record, "diversity") - diversity) ** 2]
    return math.sqrt(sum(gaps) / len(gaps))


def readings(records: Sequence[Record]) -> list[list[Record]]:
    """The lines of each scene with each reading, the closest to the paper's fixed rows first."""
    groups: dict[str, list[Record]] = {}
    for record in chosen(records, experiment="readings"):
        groups.setdefault(f"{record['scene']} {record['times_beta']}", []).append(record)
    return sorted(groups.values(), key=misfit)


def readings_rows(records: Sequence[Record]) -> Iterator[list[str]]:
    for found in readings(records):
        scene = found[0]["scene"]
        pairs = [f"{mean(record, 'reward'):.2f} / {mean(record, 'diversity'):.2f}" for record in found]
        settings = [f"{scene['radius']:g}", f"{scene['spread']:g}", f"{scene['centre'][0]:g}"]
        yield [*settings, READINGS[found[0]["times_beta"]], f"{misfit(found):.3f}", *pairs]


def energies(records: Sequence[Record]) -> Iterator[list[str]]:
    for method, schedule, scales in FRONTIER[1:5]:
        for scale in (scale for scale in scales if scale in (1, 5, 10, 20, 30, 50)):
            where = {"experiment": "frontier", "method": method, "schedule": schedule, "scale": scale}
            found = [chosen(records, times_beta=times_beta, **where)[0] for times_beta in READINGS]
            yield [name_of(found[0]), *(shown(record, "energy") for record in found)]


def ablation(records: Sequence[Record], experiment: str) -> Iterator[list[str]]:
    metrics = ("reward", "diversity", "scale_variation", "push_variation")
    for record in chosen(records, experiment=experiment):
        settings = [READINGS[record["times_beta"]], record["schedule"], f"{record[experiment]:g}"]
        yield [*settings, *(shown(record, metric) for metric in metrics)]


def steps(records: Sequence[Record]) -> Iterator[list[str]]:
    for record in chosen(records, experiment="steps"):
        cells = [READINGS[record["times_beta"]], name_of(record), str(record["steps"])]
        yield [*cells, *(shown(record, metric) for metric in ("reward", "diversity", "energy"))]
