"""`python -m research report`: research/asag/README.md and its figures, from the measured lines alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from research import arguments
from research.asag import report_figures, tables
from research.asag.report_sweeps import searches
from research.asag.report_tables import main_tables, measured_again
from research.asag.sampling import MODELS, trained
from research.lines import Line, markdown, read_lines

_INTRODUCTION = """# Evidence

Made by `python -m research report` from the JSON lines in results/. Only the words around the figures, and findings.md,
are written by hand. `python -m research evaluate PLAN --model MODEL` measures the lines (it goes on where it was
stopped), `python -m research along --model MODEL` those on the plans along sampling, and `python -m research directions
--model MODEL` those on where the methods push.

**What is measured on what.** Models small enough to lie in this repository, trained from scratch on drawings of one or
two coloured shapes (asag/lab/embedded/drawings.py): the embedded UNet, of Stable Diffusion's architecture, and a
small MMDiT, of Stable Diffusion 3's. What holds for 32x32 drawings need not hold for SDXL's
photographs: the directions are evidence, the sizes of the effects are these models' own.

**How.** The second-order solver DPM-Solver++ (2M), the WebUIs' DPM++ 2M, with 14 steps for the UNet, what it predicts
clipped to the range of pictures, and 10 for the MMDiT; the plans along sampling say their own. diffusers' stock
pipelines; guidance in the default block (the middle). *Unconditional*: no caption, no CFG. *Conditional*: with CFG 2;
the paper gives no CFG scale. Every run starts from the same noise and has the same captions, so
differences are paired; errors are by jackknife over 40 blocks of captions. In tables, (+5σ) is a difference to the
baseline (vanilla or CFG) in paired standard errors, given from 3 on; bold where it is an improvement. By chance alone
that happens once in 210 comparisons, so among the hundreds here one or two are expected.

**Metrics.** FD: Fréchet distance to 20 000 fresh drawings, on the last features of a classifier trained on drawings; FD
layout: on mean colours of 4x4 cells; FD spectrum: on log power over spatial frequency; KID: unbiased MMD with the cubic
kernel on the classifier's features, divided by their RMS, to 4000 of the drawings; IS-like: the Inception Score's
formula on the classifier's SoftMax over the 24 kinds of object. Two of three drawings hold two objects, so a higher
IS-like isn't better here: pictures of one object each would get up to 24. objects right: exactly the asked objects,
each once; contrast: a picture's standard deviation; saturation: mean of largest minus smallest channel; clipped: share
of values at the ends of the range, which is what burnt colours do; diversity: RMS difference of two pictures' layouts,
of the same caption with other noise. IS-like, contrast, saturation and clipped are best when like the drawings';
diversity when not lost.

**Three protocols.** The papers' scales (PAG and SEG 3, ASAG and the maps of its Table 3 1.5); scales that push equally
far (mean RMS of s·δ along sampling as ASAG's at 1.5); each method's best scale (lowest FD of a tenth, a quarter, half,
one, two and five times the scale of equal push), searched with other captions, other noise and fewer pictures than
those reported.
"""

_TITLES = {"unet": "The embedded UNet", "mmdit": "The small MMDiT"}


def sections(folder: Path) -> Iterator[str]:
    """The report's parts in order; a part whose lines are missing is left out. Draws the figures into `images`."""
    yield _INTRODUCTION
    findings = folder / "findings.md"
    if findings.exists():
        yield findings.read_text()
    yield from training(folder)
    for model, title in _TITLES.items():
        found = list(of_model(folder, model))
        if found:
            yield f"## {title}"
            yield from found
    yield cost(folder.parent.parent / "bench" / "results")


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
            f"### Where the methods push\n\nδ of every method on the same latents, {lines[0]['pictures']} pictures "
            "without captions and guidance, means over the steps. *Contrast*: along the predicted picture less its "
            f"mean, so a push that makes the picture stronger and changes nothing else.\n\n{tables.directions(lines)}"
            f"\n\n![Pushes along sampling]({path})"
        )
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
    yield "### The plans along sampling, and Table 3's iterations"
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
    newest = max(results.glob("*.jsonl"), default=None)
    found = {
        (line["case"], line["variant"]): line
        for line in (read_lines(newest) if newest else [])
        if line["bench"] == "step" and line["case"].endswith("-mid")
    }
    for case in dict.fromkeys(case for case, _ in found):
        whole, *sharing = (found.get((case, name)) for name in ("full-pass", "pag", "seg", "asag"))
        rows.append([f"here: {case}, a whole extra pass", "1", "–", "–", _time(whole)])
        rows.append([f"here: {case}, sharing work", "1", *map(_time, sharing)])
        rows.append([f"here: {case}, sharing work, peak memory", "1", *map(_memory, sharing)])
    head = ["", "CFG", "PAG", "SEG", "ASAG"]
    return (
        "## Cost (the paper's Table 4)\n\nRatios to CFG alone (bench/results), medians ± the interquartile range of "
        "paired steps on a CPU. A whole extra pass is what other implementations of any of the three take; it was "
        "measured with ASAG. The paper doesn't say why PAG's costs so little there. Here the pass shares what comes "
        f"before the block, and all three methods gain by that.\n\n{markdown(head, rows)}"
    )


def _time(line: Line | None) -> str:
    return f"{line['ratio_to_cfg']:.2f} ± {line['spread']:.2f}" if line else "–"


def _memory(line: Line | None) -> str:
    return f"{line['memory_to_cfg']:.3f}" if line else "–"


def main(argv: list[str] | None = None) -> int:
    args = arguments.report(argv)
    text = "\n\n".join(part.strip() for part in sections(args.folder) if part)
    (args.folder / "README.md").write_text(text + "\n")
    print(f"Written: {args.folder / 'README.md'}")
    return 0
