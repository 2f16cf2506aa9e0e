"""`python -m research guidance_breaks --run toy pictures`: both experiments on the adaptive scale, written up.

The page is made of the experiments' JSON lines alone; without --run it is written anew from those that are there. Its
words were written for the default run; every number in them is read from the lines.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image

from research import arguments
from research.guidance_breaks import figures, pictures, pictures_page, tables, toy
from research.guidance_breaks.report_findings import findings, one
from research.guidance_breaks.tables import Record, chosen
from research.lines import markdown, read_lines

HEAD = """\
# Adaptive scale: the experiments of "When guidance breaks"

## The 2-D mixture (Table 1)

To repeat: `python -m research guidance_breaks --run toy`. {seeds} seeds of {samples} samples each ({small}
each where many readings are tried, and with 2000 steps). ± is the standard error over seeds. The numbers are in
[adaptive-toy.jsonl](results/adaptive-toy.jsonl), the code is in `research/guidance_breaks/`.
"""

CHOICES = """\
### What the paper leaves open, and what is chosen here

- **The mixture and c.** The paper doesn't give them. {scenes} are tried: eight modes of equal weight on a circle of
  radius 0.5, 1 or 2, with standard deviation 0.1 or 0.3, and c on a mode, half way between a mode and the middle, or in
  the middle. Everything except the last table uses radius 0.5, deviation 0.1 and c half way. This is the closest to the
  paper's four **fixed** rows. The adaptive row played no part in the choice.
- **Whether the push is multiplied by β(t).** In the paper's Section 3.1 λ∇log r is added to the score, which the
  reverse SDE multiplies by β ("push times β"). Adding it to the drift as it is ("push without β") is tried too; it
  fits the fixed rows better. ∇log r is taken at x_t, as the paper writes it.
- **Reward**: the mean of exp(-‖x - c‖²). **Diversity**: the mean distance between two samples, in parts of the
  unguided samples'. **Collapse**: "Yes" below 0.1, "Partial" below 0.3, which fits the paper's fixed rows;
  "Diverged": more than twice as far apart as unguided.
- **Adaptive**: Eq. 2 for each sample, α = 0.9, ε = 1e-3, by `asag.guidance.AdaptiveScale` (with λ₀/√2 and ε/√2: its
  size is an RMS, the paper's a norm). The average starts at the first size. **Bell**: sin², ASAG's own.
- **Clipping**, M = 1: of ∇log r before λ ("clip-gradient") or of λ∇log r ("clip-term"); the paper can be read both
  ways. **Soft**: ‖∇log r‖ becomes tanh ‖∇log r‖. **Dynamic thresholding**: Imagen's, on the predicted clean point.
- **target**: exact samples of p·r^λ, what guidance is meant to sample (Eq. 1), with no sampler at all.
"""


MATCHED = """\
Adaptive runs are compared with fixed λ of the same reward, by straight lines between the λ tried (which says up to
about {error:g} too little for fixed λ). "More" and "less" above mean by more than that and by two standard errors. An
empty cell: no fixed λ that was tried has that reward.
"""


def report(records: Sequence[Record]) -> str:
    """The page's first part. Raises IndexError where lines of `toy.run` are missing."""
    found, small = one(records, True, "fixed", 50.0), chosen(records, experiment="readings")[0]
    head = HEAD.format(seeds=len(found["seeds"]), samples=found["samples"], small=small["samples"])
    scenes = f"{len(tables.readings(records)) // 2} mixtures"
    parts = [
        head,
        "### What comes out\n",
        "\n".join(f"- {each}" for each in findings(records)) + "\n",
        "![Where the samples end](images/adaptive-samples.png)\n",
        "Samples of one seed with each method; the orange cross is c.\n",
        CHOICES.format(scenes=scenes),
        *main_tables(records),
        *more_tables(records),
    ]
    return "\n".join(parts)


def page(records: Sequence[Record], found: Sequence[Record]) -> str:
    """The page of both experiments, the second of which may be missing."""
    return "\n".join([report(records), *([pictures_page.section(found)] if found else [])])


def main_tables(records: Sequence[Record]) -> Iterator[str]:
    """Table 1, and diversity over reward."""
    three = ("reward", "diversity", "collapse")
    paper = [f"paper: {name}" for name in three]
    ours = [f"{reading}: {name}" for reading in ("β", "no β") for name in three]
    yield "### Table 1, the paper's and ours\n"
    yield markdown(["", *paper, *ours], tables.table_1(records)) + "\n"
    yield "### Diversity over reward\n"
    yield "![Diversity over reward](images/adaptive-frontier.png)\n"
    yield "Each curve goes over λ (λ₀); diverged runs are left out.\n"
    yield MATCHED.format(error=tables.INTERPOLATION)
    head = ["push", "run", "reward", "diversity", "more than fixed λ", "more than fixed λ, bell"]
    yield folded("Adaptive runs against fixed λ of the same reward", markdown(head, tables.matched(records)))


def more_tables(records: Sequence[Record]) -> Iterator[str]:
    """The long tables, folded away under a line each."""
    swept = ("push", "schedule", "reward", "diversity", "std / mean of λ_t", "std / mean of the push")
    yield "### Control energy Σ‖λ∇log r(x_t)‖²Δt\n"
    yield "![Control energy over λ](images/adaptive-energy.png)\n"
    yield folded("The energies", markdown(["", *tables.READINGS.values()], tables.energies(records)))
    yield "### α and ε, at λ₀ = 50\n"
    yield "![α and ε](images/adaptive-ablations.png)\n"
    yield folded("Over α", markdown([*swept[:2], "α", *swept[2:]], tables.ablation(records, "momentum")))
    yield folded("Over ε", markdown([*swept[:2], "ε", *swept[2:]], tables.ablation(records, "epsilon")))
    yield "### More steps\n"
    steps = ["push", "run", "steps", "reward", "diversity", "energy"]
    yield folded("With 500 and 2000 steps", markdown(steps, tables.steps(records)))
    yield "### Where the modes and c could lie\n"
    yield (
        "Reward / diversity. Misfit: the root mean square distance to the paper's four fixed rows, where 1 unit of "
        "reward counts as 1 of diversity.\n"
    )
    columns = [tables.name_of(record) for record in tables.readings(records)[0]]
    head = ["radius", "deviation", "c", "push", "misfit", *columns]
    yield folded("All readings, the closest first", markdown(head, tables.readings_rows(records)))


def folded(summary: str, table: str) -> str:
    """A table that opens with a click."""
    return f"<details><summary>{summary}</summary>\n\n{table}\n\n</details>\n"


def write_lines(path: Path, found: Iterable[Record]) -> None:
    """JSON lines, as they come. Raises ValueError for a number that JSON doesn't have."""
    with path.open("w") as file:
        for line in found:
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()


def run_pictures(
    path: Path,
    sheet: Path,
    seeds: Sequence[int],
    size: pictures.Size,
    cells: Sequence[pictures.Cell] = pictures.CELLS,
) -> None:
    """The experiment on pictures: its lines into `path`, some of its pictures into `sheet`."""
    shown = []

    def lines() -> Iterator[Record]:
        for line, images in pictures.run(seeds, size, cells):
            if images is not None:
                shown.append((line, images))
            yield line

    write_lines(path, lines())
    pictures_page.sheet(shown, size.group).savefig(sheet, dpi=80)
    with Image.open(sheet) as drawn:
        # A palette: a seventh of the bytes, for pictures of few colours.
        drawn.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(sheet, optimize=True)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments.guidance_breaks(argv)
    torch.set_num_threads(1)  # of one core: the tensors are too small for more to help
    results, images = args.out / "results", args.out / "images"
    toy_lines, picture_lines = results / "adaptive-toy.jsonl", results / "adaptive-classifier.jsonl"
    for folder in (results, images):
        folder.mkdir(parents=True, exist_ok=True)
    seeds = range(args.seeds)
    for name in args.run:
        began = time.process_time()
        if name == "toy":
            write_lines(toy_lines, toy.run(seeds, args.samples, args.small_samples))
        else:
            size = pictures.Size(captions=args.captions, guide_steps=args.guide_steps)
            run_pictures(picture_lines, images / "adaptive-pictures.png", seeds, size)
        print(f"{name}: {time.process_time() - began:.0f} CPU s", flush=True)
    records, found = read_lines(toy_lines), read_lines(picture_lines)
    figures.draw_all(records, images)
    if found:
        pictures_page.trade(found).savefig(images / "adaptive-classifier.png", dpi=110)
    readme = args.out / "README.md"
    readme.write_text(page(records, found))
    print(f"Written: {readme} and {images}")
    return 0
