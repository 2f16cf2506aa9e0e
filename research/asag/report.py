"""`python -m research report`: the pages on ASAG and their figures, from the measured lines and the texts alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from research import arguments
from research.asag import report_figures, report_index, report_prose, report_units, tables
from research.asag.report_sweeps import searches
from research.asag.report_tables import main_tables, measured_again
from research.asag.sampling import MODELS, trained
from research.lines import Line, markdown, read_lines, replace_text

_TITLES = {"unet": "The embedded UNet", "mmdit": "The small MMDiT"}
_ABOUT = "[How it was measured, and what the columns mean](README.md) · [What was found](findings.md)"


def pages(folder: Path) -> Iterator[tuple[Path, str]]:
    """Each page and what it says; what has no lines is left out. Draws the figures into `images`."""
    start = [
        report_prose.filled(folder, "asag.txt"),
        *training(folder),
        cost(folder.parent.parent / "bench" / "results"),
    ]
    yield folder / "README.md", _joined(start)
    for model, title in _TITLES.items():
        if found := list(of_model(folder, model)):
            yield folder / f"{model}.md", _joined([f"# {title}", _ABOUT, *found])
    report_index.draw(folder)
    yield from report_prose.pages(folder)


def _joined(parts: Iterable[str]) -> str:
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def training(folder: Path) -> Iterator[str]:
    curves = {name: read_lines(folder / "results" / f"training-{name}.jsonl") for name in _TITLES}
    curves = {name: rows for name, rows in curves.items() if rows}
    if curves:
        report_figures.losses(curves, folder / "images" / "losses.png")
        folders = [MODELS[name].MODEL.name for name in trained()]
        cards = [f"[{name}](../../asag/lab/embedded/{name}/README.md)" for name in folders]
        yield f"## The models\n\nScripts, seeds and contact sheets: {', '.join(cards)}."
        yield "![Loss over pictures](images/losses.png)"


def of_model(folder: Path, model: str) -> Iterator[str]:
    yield from main_tables(folder, model)
    if lines := read_lines(folder / "results" / f"along-{model}.jsonl"):
        yield from along_part(folder, model, lines)
    if lines := read_lines(folder / "results" / f"directions-{model}.jsonl"):
        path = f"images/directions-{model}.png"
        report_figures.directions(lines, "Where each method pushes", folder / path)
        yield (
            f"## Where the methods push\n\nδ of every method on the same latents: {lines[0]['pictures']} pictures "
            "without captions and guidance, means over the steps. *Contrast* is the direction of the predicted picture "
            "less its mean. A push along it makes the picture stronger and changes nothing else."
            f"\n\n{tables.directions(lines)}\n\n![Pushes along sampling]({path})"
        )
    yield from report_units.units(folder, model)
    yield from searches(folder, model)
    yield from measured_again(folder, model)


def along_part(folder: Path, model: str, lines: list[Line]) -> Iterator[str]:
    path = f"images/along-{model}.png"
    report_figures.along(
        lines, f"Plans of the default block along sampling, {lines[0]['tokens']} tokens", folder / path
    )

    def mean(cost: str, kind: str, key: str) -> float:
        return sum(float(line["costs"][cost][kind][key]) for line in lines) / len(lines)

    rows = [
        [name, *(f"{mean(cost, 'needed', tolerance):.1f}" for tolerance in ("0.01", "0.001", "0.0001")), paper]
        for cost, name, paper in (("similarity", "M = 1 − QKᵀ", "≈ 10"), ("adversarial", "M = QKᵀ (ASAG)", "≈ 2"))
    ]
    head = ["cost", "mean abs(Δg) < 1e-2", "< 1e-3", "< 1e-4", "paper, SDXL (tolerance not given)"]
    yield "## The plans along sampling, and Table 3's iterations"
    yield f"Sweeps needed, a mean over steps, heads and pictures:\n\n{markdown(head, rows)}"
    entropy = sum(line["softmax_entropy"] for line in lines) / len(lines)
    yield (
        f"Normalised entropy of the rows, mean over the steps: SoftMax {entropy:.3f}, ASAG after 2 sweeps "
        f"{mean('adversarial', 'entropy', '2'):.3f}, the uniform map 1. Column sums of ASAG's map after 2 sweeps are "
        f"off by {mean('adversarial', 'columns', '2'):.3f} on average.\n\n![Plans along sampling]({path})"
    )


def cost(results: Path) -> str:
    """Table 4 as ratios to CFG: the paper's, and those of the newest file of results with their spread."""
    rows = [
        ["paper: SDXL, seconds of an H100", "1.198 (1)", "1.280 (1.07)", "1.513 (1.26)", "1.551 (1.29)"],
        ["paper: SDXL, memory, GB", "16.41 (1)", "16.46 (1.003)", "16.61 (1.012)", "16.61 (1.012)"],
    ]
    files = [
        [line for line in read_lines(path) if "ratio_to_cfg" in line and line["case"].endswith("-mid")]
        for path in sorted(results.glob("*-cpu*.jsonl"))
    ]
    # Others of these files have heads.
    newest = next((lines for lines in reversed(files) if lines), [])
    found = {(line["case"], line["variant"]): line for line in newest if line["bench"] == "step"}
    for case in dict.fromkeys(case for case, _ in found):
        whole, *sharing = (found.get((case, name)) for name in ("full-pass", "pag", "seg", "asag"))
        rows.append([f"here: {case}, a whole extra pass", "1", "–", "–", _time(whole)])
        rows.append([f"here: {case}, sharing work", "1", *map(_time, sharing)])
        rows.append([f"here: {case}, sharing work, peak memory", "1", *map(_memory, sharing)])
    head = ["", "CFG", "PAG", "SEG", "ASAG"]
    return (
        "## Cost (the paper's Table 4)\n\nRatios to CFG alone (bench/results): medians ± the interquartile range of "
        "paired steps on a CPU. Other implementations of the three methods take a whole extra pass; it was measured "
        "with ASAG. The paper doesn't say why PAG's costs so little there. Here the pass shares what comes before the "
        f"block, and all three methods gain by that.\n\n{markdown(head, rows)}"
    )


def _time(line: Line | None) -> str:
    return f"{line['ratio_to_cfg']:.2f} ± {line['spread']:.2f}" if line else "–"


def _memory(line: Line | None) -> str:
    return f"{line['memory_to_cfg']:.3f}" if line else "–"


def main(argv: list[str] | None = None) -> int:
    args = arguments.report(argv)
    for path, text in pages(args.folder):
        replace_text(path, text)
        print(f"Written: {path}")
    return 0
