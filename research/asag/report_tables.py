"""The report's parts on what was measured with captions and noise that no search has seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from research.asag import tables
from research.asag.report_counts import missing, planned, preliminary, sampled
from research.asag.tables import number
from research.lines import Line, read_lines


def main_tables(folder: Path, model: str) -> Iterator[str]:
    """The paper's Table 1 and Table 3's maps, where they have been measured."""
    if lines := read_lines(folder / "results" / f"main-{model}.jsonl"):
        yield from main_part(
            lines, read_lines(folder / "results" / f"drawings-{model}.jsonl"), planned(folder, "main", model)
        )


def measured_again(folder: Path, model: str) -> Iterator[str]:
    """What the searches led to, where it has been measured."""
    parts = {"confirm": confirm_part, "plain": plain_part, "strong": strong_part, "fresh": fresh_part}
    for plan, part in parts.items():
        if lines := read_lines(folder / "results" / f"{plan}-{model}.jsonl"):
            yield from part(lines, planned(folder, plan, model))


def main_part(lines: list[Line], drawings: list[Line], cells: int) -> Iterator[str]:
    """The tables of the main plan, which has `cells` cells, and what drawings have by the same metrics."""
    yield _head("All methods (the paper's Table 1, and Table 3's maps)", "", lines, cells)
    yield from _comparisons(lines)
    for line in drawings:
        shown = ", ".join(
            f"{title} {number(line['metrics'][name]['value'], name)}"
            for name, title in tables.METRICS.items()
            if name in line["metrics"]
        )
        design = "with the objects that are asked for" if line["condition"] == "conditional" else "of anything"
        yield f"{line['samples']} fresh drawings {design}, than which no model can be expected to do better: {shown}."
    told = tables.verdicts(lines)
    if told:
        yield "**ASAG against the others**, by paired differences of at least 3 standard errors:\n\n" + "\n".join(told)


def confirm_part(lines: list[Line], cells: int) -> Iterator[str]:
    """What did best in the searches, measured again; the plan has `cells` cells."""
    words = (
        "Captions and noise are the main tables', which no search has seen. The settings are those of ASAG with the "
        "lowest FD of all searches above; the other methods have the same block, window, rescale and contrast, and "
        "push as far."
    )
    found = {line["condition"]: tables.in_words(line["settings"]) for line in lines if line["method"] == "asag"}
    told = {condition: f": {settings}" for condition, settings in found.items()}
    yield from _part("The best of the searches, measured again", words, lines, cells, told)


def plain_part(lines: list[Line], cells: int) -> Iterator[str]:
    """Captions without CFG; the plan has `cells` cells."""
    words = (
        "As models made to run without CFG are used. The settings are those that did best in the searches without "
        "captions, the other methods' scales those that pushed as far there."
    )
    yield _head("Captions without CFG", words, lines, cells)
    best = [
        f"{tables.NAMES[line['method']]}: {tables.in_words(line['settings'])}"
        for line in lines
        if line["protocol"] == "best"
    ]
    if best:
        yield f"**Each at its best** of the search above: {'; '.join(best)}."
    yield from _comparisons(lines)
    yield "\n".join(tables.verdicts(lines))


def strong_part(lines: list[Line], cells: int) -> Iterator[str]:
    """Beside a stronger CFG; the plan has `cells` cells."""
    words = (
        "Captions and noise are the main tables'. Equal push is what pushed as far beside their CFG; the other "
        "methods' papers' scales weren't measured here."
    )
    yield from _part(f"Beside CFG {lines[0]['guidance_scale']:g}", words, lines, cells)


def fresh_part(lines: list[Line], cells: int) -> Iterator[str]:
    """What ASAG gained, once more; the plan has `cells` cells."""
    words = (
        "What ASAG gained above, measured once more with captions and noise that no search and no other table has "
        "seen. All of it was fixed before."
    )
    yield from _part("What was found, on fresh captions and noise", words, lines, cells)


def _part(
    title: str, words: str, lines: list[Line], cells: int, told: Mapping[str, str] | None = None
) -> Iterator[str]:
    yield _head(title, words, lines, cells)
    yield from _comparisons(lines, told)
    yield "\n".join(tables.verdicts(lines))


def _head(title: str, words: str, lines: list[Line], cells: int) -> str:
    counted = [f"{sampled(lines)}{preliminary(lines)}", words]
    return f"### {title}\n\n{' '.join(filter(None, counted))}{missing(lines, cells)}"


def _comparisons(lines: list[Line], told: Mapping[str, str] | None = None) -> Iterator[str]:
    """A table per condition, under its name and what is `told` of it."""
    for condition in tables.conditions_of(lines):
        title = f"**{condition.capitalize()}**{(told or {}).get(condition, '')}"
        yield f"{title}\n\n{tables.comparison(lines, condition)}"
