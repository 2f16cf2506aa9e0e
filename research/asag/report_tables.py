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
        yield f"{line['samples']} fresh drawings {design} have, and no model can be expected to do better: {shown}."
    yield _folded_verdicts(lines)


def confirm_part(lines: list[Line], cells: int) -> Iterator[str]:
    """What did best in the searches, measured again; the plan has `cells` cells."""
    words = (
        "Captions and noise are those of the main tables, which no search has used. ASAG's settings are those with the "
        "lowest FD of all searches. The other methods have the same block, window, rescale and contrast, at equal "
        "push."
    )
    found = {line["condition"]: tables.in_words(line["settings"]) for line in lines if line["method"] == "asag"}
    after = {condition: f": {settings}" for condition, settings in found.items()}
    yield from _part("The best of the searches, measured again", words, lines, cells, after)


def plain_part(lines: list[Line], cells: int) -> Iterator[str]:
    """Captions without CFG; the plan has `cells` cells."""
    words = (
        "Models made to run without CFG are used like this. The settings are those that did best in the searches "
        "without captions. The other methods' scales push equally far there."
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
    yield _folded_verdicts(lines)


def strong_part(lines: list[Line], cells: int) -> Iterator[str]:
    """Beside a stronger CFG; the plan has `cells` cells."""
    words = (
        "Captions and noise are those of the main tables. Scales of equal push are those found with their CFG. The "
        "papers' scales of the other methods weren't measured here."
    )
    yield from _part(f"With CFG {lines[0]['guidance_scale']:g}", words, lines, cells)


def fresh_part(lines: list[Line], cells: int) -> Iterator[str]:
    """What ASAG gained, once more; the plan has `cells` cells."""
    words = (
        "What ASAG gained above, measured once more with captions and noise that no search and no other table has "
        "used. All settings were fixed before."
    )
    yield from _part("What was found, on fresh captions and noise", words, lines, cells)


def _part(
    title: str, words: str, lines: list[Line], cells: int, after: Mapping[str, str] | None = None
) -> Iterator[str]:
    yield _head(title, words, lines, cells)
    yield from _comparisons(lines, after)
    yield _folded_verdicts(lines)


def _head(title: str, words: str, lines: list[Line], cells: int) -> str:
    counted = [f"{sampled(lines)}{preliminary(lines)}", words]
    return f"## {title}\n\n{' '.join(filter(None, counted))}{missing(lines, cells)}"


def _folded_verdicts(lines: list[Line]) -> str:
    """Where ASAG is better and worse than the others, folded away under one line; nothing where it isn't compared."""
    found = tables.verdicts(lines)
    if not found:
        return ""
    summary = "Where ASAG is better or worse than the others, by at least 3 paired standard errors"
    sentences = "\n".join(found)
    return f"<details><summary>{summary}</summary>\n\n{sentences}\n\n</details>"


def _comparisons(lines: list[Line], after: Mapping[str, str] | None = None) -> Iterator[str]:
    """A table per condition, under its name and the words `after` it."""
    for condition in tables.conditions_of(lines):
        title = f"**{condition.capitalize()}**{(after or {}).get(condition, '')}"
        yield f"{title}\n\n{tables.comparison(lines, condition)}"
