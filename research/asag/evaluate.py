"""`python -m research evaluate`: the papers' experiments on the embedded models.

Sampled pictures are kept as descriptions, in parts, in a folder outside version control: a run that was stopped goes
on, several processes share one (`--share 0/2`, `--share 1/2`), and what a plan has in common with another is sampled
once. A cell whose parts are all there becomes a JSON line in `--out`; a cell with a line of as many samples isn't
measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from asag.lab.embedded import drawings, shipped
from research import arguments
from research.asag.calibration import (
    calibrate,
    calibrate_chosen,
    calibrate_high,
    calibrate_rivals,
    choose_best,
    choose_plain,
    choose_strong,
)
from research.asag.cells import Cell, Plan
from research.asag.descriptions import Store, describe
from research.asag.found_scales import Scales
from research.asag.metrics import Estimate, Metrics
from research.asag.plans import PLANS
from research.asag.result_files import Measured
from research.asag.sample_size import Size
from research.asag.sampling import (
    SOLVER,
    Part,
    Run,
    Sampler,
    captions,
    trained,
    weights,
)
from research.lines import Line, read_lines, write_lines

_REFERENCE = 20_000  # drawings that pictures are compared with
_REFERENCE_SEED = 30_000
CALIBRATIONS = {
    "calibrate": calibrate,
    "calibrate-high": calibrate_high,
    "calibrate-rivals": calibrate_rivals,
    "calibrate-chosen": calibrate_chosen,
}
# What is chosen of a search's lines once it has run.
_CHOICES = {"search": choose_best, "plain-search": choose_plain, "strong-search": choose_strong}


class Evaluation:
    """Samples what is missing of plans, and turns complete cells into lines."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.classifier = shipped.load_classifier()
        self.sampler = Sampler()
        self.estimates: dict[tuple[Run, Size], dict[str, Estimate]] = {}
        self.measure: Metrics | None = None

    def missing(self, cells: Iterable[Cell], size: Size) -> list[tuple[Run, Part]]:
        """What the lines of `cells` need and isn't there, in the order of the cells; of each first its baseline."""
        needed = [run for cell in cells for run in (cell.baseline, cell.run, cell.rival) if run]
        return [(run, part) for run in dict.fromkeys(needed) for part in size.parts() if not self.store.has(run, part)]

    def sample(self, run: Run, part: Part) -> None:
        labels = part.labels()
        images = self.sampler.sample(run, part, labels)
        self.store.write(run, part, describe(images, labels, self.classifier))

    def metrics(self) -> Metrics:
        if self.measure is None:
            drawn = drawings.draw(_REFERENCE, torch.Generator().manual_seed(_REFERENCE_SEED))
            self.measure = Metrics(describe(*drawn, self.classifier))
        return self.measure

    def estimate(self, run: Run, size: Size) -> dict[str, Estimate]:
        if (run, size) not in self.estimates:
            described = self.store.read(run, size.parts())
            if not run.conditional:
                del described["right"]  # nothing was asked for
            self.estimates[run, size] = self.metrics()(described, len(size.seeds))
        return self.estimates[run, size]

    def drawings(self, size: Size) -> Iterator[dict[str, Any]]:
        """Lines of as many fresh drawings, than which no model can be expected to do better: with other objects each,
        and with those that are asked for, drawn anew for every seed."""
        generator = torch.Generator().manual_seed(_REFERENCE_SEED + 1)
        asked = captions(size.captions, size.captions_seed)
        for condition in ("unconditional", "conditional"):
            given = condition == "conditional"
            drawn = [
                drawings.redraw(asked, generator) if given else drawings.draw(size.captions, generator)
                for _ in size.seeds
            ]
            parts = [describe(*each, self.classifier) for each in drawn]
            described = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            found = self.metrics()(described, len(size.seeds))
            if not given:
                found.pop("diversity", None)  # pictures differ by their objects, too
            metrics = {name: {"value": rounded(e.value), "error": rounded(e.error)} for name, e in found.items()}
            yield {
                "plan": "drawings",
                "condition": condition,
                **size.fields(),
                "metrics": metrics,
            }

    def lines(self, cells: Iterable[Cell], size: Size) -> Iterator[dict[str, Any]]:
        """A line for each cell that is complete."""
        for cell in cells:
            if not self.missing([cell], size):
                others = {"baseline": cell.baseline} | ({"asag": cell.rival} if cell.rival else {})
                compared = {name: self.estimate(run, size) for name, run in others.items()}
                yield line(cell, size, self.estimate(cell.run, size), compared)


def rounded(value: float) -> float:
    return float(f"{value:.5g}")


def compared(estimates: dict[str, Estimate], others: dict[str, dict[str, Estimate]]) -> dict[str, dict[str, float]]:
    """Of each metric the value and its error, and for each of `others` the difference to it with the paired error, as
    `to_baseline` and `to_baseline_error`."""
    metrics = {}
    for name, estimate in estimates.items():
        figures = {"value": estimate.value, "error": estimate.error}
        for other, theirs in others.items():
            figures[f"to_{other}"], figures[f"to_{other}_error"] = estimate.minus(theirs[name])
        metrics[name] = {key: rounded(value) for key, value in figures.items()}
    return metrics


def line(
    cell: Cell, size: Size, estimates: dict[str, Estimate], others: dict[str, dict[str, Estimate]]
) -> dict[str, Any]:
    """A cell as a JSON line."""
    return {
        "plan": cell.plan,
        "model": cell.run.model,
        "condition": cell.condition,
        "protocol": cell.protocol,
        "method": cell.method,
        "guidance_scale": cell.run.guidance_scale,
        "solver": SOLVER,
        "steps": cell.run.steps,
        "settings": dict(cell.run.settings),
        **size.fields(),
        "metrics": compared(estimates, others),
        "weights": weights(cell.run.model),
        "run": cell.run.key,
        "baseline": cell.baseline.key,
        "rival": cell.rival and cell.rival.key,
        "date": date.today().isoformat(),
    }


def run_plan(evaluation: Evaluation, name: str, plan: Plan, args: argparse.Namespace) -> None:
    """Sample this process's share of what a plan lacks; write a cell's line as soon as it is complete."""
    size = Size(args.captions or plan.captions, tuple(args.seeds or plan.seeds), plan.captions_seed)
    measured = Measured(args.out / f"{name}-{args.model}.jsonl", plan)
    number, of = args.share
    # Of all parts, not of the missing ones: those change while other processes work.
    mine = set(size.parts()[number::of])

    def todo(cells: Iterable[Cell]) -> list[tuple[Run, Part]]:
        return [(run, part) for run, part in evaluation.missing(cells, size) if part in mine]

    if not args.report:
        wanted = [
            cell
            for cell in plan.cells
            if (not args.only or {cell.method, cell.protocol} & {*args.only, "none"})
            and args.condition in (None, cell.condition)
        ]
        lacking = measured.lacks(wanted, size)
        with tqdm(total=len(todo(lacking)), unit="part", desc=f"{name} {args.model}") as progress:
            for cell in lacking:
                for run, part in todo([cell]):
                    evaluation.sample(run, part)
                    progress.update()
                measured.add(evaluation.lines([cell], size))
    measured.add(evaluation.lines(measured.lacks(plan.cells, size), size))
    if args.prune:
        print(f"{name} {args.model}: {measured.prune()} lines dropped that the plan doesn't have", flush=True)
    if name == "main" and (lines := measured.lines()):
        add_drawings(evaluation, args.model, lines, args.out / f"drawings-{args.model}.jsonl")
    complete = len(plan.cells) - len(measured.lacks(plan.cells, size))
    print(f"{name} {args.model}: {complete} of {len(plan.cells)} cells complete", flush=True)


def add_drawings(evaluation: Evaluation, model: str, lines: list[Line], path: Path) -> None:
    """Write lines of as many drawings as each of `lines` has pictures; those that are there stay, except those that
    another classifier has judged."""
    of = weights(model)
    wanted = {(line["condition"], Size.of(line)) for line in lines}
    there = {(line["condition"], Size.of(line)): line for line in read_lines(path) if line.get("weights") == of}
    for size in {size for condition, size in wanted if (condition, size) not in there}:
        there |= {(line["condition"], size): line | {"weights": of} for line in evaluation.drawings(size)}
    kept = [line for key, line in there.items() if key in wanted]
    write_lines(path, sorted(kept, key=lambda line: (line["condition"], line["samples"]), reverse=True))


def main(argv: list[str] | None = None) -> int:
    args = arguments.evaluate(argv)
    if args.model not in trained():
        args.error(f"--model: {args.model}, which is not trained yet; allowed: {', '.join(trained())}")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    scales = Scales(args.out / "scales.json")
    evaluation = Evaluation(Store(args.store))
    for name in args.plans:
        if name in CALIBRATIONS:
            CALIBRATIONS[name](evaluation.sampler, args.model, scales)
            continue
        run_plan(evaluation, name, PLANS[name](args.model, scales), args)
        if name in _CHOICES:
            _CHOICES[name](args.out / f"{name}-{args.model}.jsonl", args.model, scales)
    return 0
