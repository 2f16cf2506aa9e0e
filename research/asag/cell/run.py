"""`python -m research cell`: the decisive cell, as protocol-cell.md has it.

CFG alone, and ASAG, the uniform map, SEG and PAG at equal push in the layer and heads that the fingerprint chose. What
is kept of the pictures lies in parts in a folder outside version control: a run that was stopped goes on, and several
processes share one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from asag.lab.renderings import names
from asag.lab.renderings.pictures import Pictures
from research import arguments
from research.asag import sampling
from research.asag.cell.choice import Choice, choose
from research.asag.cell.model import CFG, Model
from research.asag.cell.network import Network, NetworkError
from research.asag.cell.pictures import TITLES, Distances, describe
from research.asag.descriptions import Store
from research.asag.evaluate import compared
from research.asag.metrics import Estimate
from research.asag.sample_size import Size
from research.asag.sampling import Part
from research.asag.tables import NAMES, SURE
from research.device import device_of
from research.lines import Line, markdown, read_lines, replace_text, write_lines

METHODS = ("cfg", "asag", "uniform", "seg", "pag")
CAPTIONS_SEED, REFERENCE_SEED = 41_000, 42_000
BETTER = {"fd": -1, "kid": -1, "fd_network": -1, "kid_network": -1, "name_right": 1, "group_right": 1}


@dataclass(frozen=True)
class CellRun:
    """A method's run, or the reference's, by the key of its files."""

    method: str
    key: str
    settings: tuple[tuple[str, Any], ...] = ()


class Cell:
    """Samples what is missing, and turns complete runs into lines.

    Raises FileNotFoundError where the folder of renderings lacks its packages, and NetworkError.
    """

    def __init__(self, args: argparse.Namespace, model: Model, choice: Choice) -> None:
        self.args, self.model, self.choice = args, model, choice
        self.store, self.size = Store(args.store), Size(args.captions, tuple(args.seeds), CAPTIONS_SEED)
        self.network = Network(args.network, model.device) if args.network else None
        self.weights = model.weights()
        self.runs = [self._run(method) for method in METHODS]
        self.kept = [each for each in names.read(args.data) if each.name in set(model.learnt)]
        self.reference = CellRun("reference", self._key("reference", [each.name for each in self.kept]))

    @cached_property
    def renderings(self) -> Pictures:
        return Pictures(self.kept, self.model.device)

    def _run(self, method: str) -> CellRun:
        given = {"method": method, "unit": "cfg", "scale": self.args.push, "blocks": self.choice.blocks}
        settings = tuple(sorted(given.items())) if method != "cfg" else ()
        return CellRun(method, self._key(method, settings), settings)

    def _key(self, name: str, of: Any) -> str:
        network = self.network.digest if self.network else None
        told = json.dumps([self.weights, network, self.model.half_size, self.model.steps, CFG, of])
        return f"{self.model.name}-{name}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"

    def missing(self, run: CellRun) -> list[Part]:
        return [part for part in self.parts(run) if not self.store.has(run, part)]

    def parts(self, run: CellRun) -> list[Part]:
        size = Size(self.args.reference, (0,), REFERENCE_SEED) if run == self.reference else self.size
        return size.parts()

    def make(self, run: CellRun, part: Part) -> None:
        """Sample a part, or draw one of real renderings, and keep its descriptions."""
        if run == self.reference:
            described = describe(self._drawn(part), self.model.judge, self.network)
        else:
            first = part.number * sampling.PART
            asked = self.model.asked(first + part.pictures, part.captions)[first:]
            noise = self.model.noise(part.pictures, part.seed * 1000 + part.number)
            images = self.model.sample(asked, noise, dict(run.settings))
            described = describe(images, self.model.judge, self.network, asked, self.model.learnt)
        self.store.write(run, part, described)

    def _drawn(self, part: Part) -> Tensor:
        """Renderings of the names that were learnt, augmented as in training."""
        generator = torch.Generator().manual_seed(part.captions + part.number)
        rows = torch.randint(len(self.kept), (part.pictures,), generator=generator)
        return self.renderings.draw(rows, generator)

    def lines(self) -> Iterator[Line]:
        """A line for each method that is complete, once CFG and the reference are."""
        plain, asag = self.runs[0], self.runs[1]
        if self.missing(self.reference) or self.missing(plain):
            return
        distances = Distances(self.store.read(self.reference, self.parts(self.reference)), self.model.device)
        described = {run: self.store.read(run, self.parts(run)) for run in self.runs if not self.missing(run)}
        found: dict[CellRun, dict[str, Estimate]] = {
            run: distances(each, described[plain], len(self.size.seeds)) for run, each in described.items()
        }
        for run, estimates in found.items():
            others = {"baseline": found[plain]} | ({"asag": found[asag]} if asag in found else {})
            yield self._line(run, compared(estimates, others))

    def _line(self, run: CellRun, metrics: dict[str, dict[str, float]]) -> Line:
        return {
            **{"plan": "cell", "model": self.model.name, "method": run.method, "settings": dict(run.settings)},
            **{"guidance_scale": CFG, "steps": self.model.steps, **self.size.fields()},
            **{"reference": self.args.reference, "fingerprint": self.choice.found, "metrics": metrics},
            **{"network": self.args.network.name if self.network else None, "weights": self.weights},
            **{"run": run.key, "date": date.today().isoformat()},
        }


def table(lines: list[Line]) -> str:
    """A row for each method: every metric, with its difference to CFG in paired errors where it is one to be sure of,
    and to ASAG in square brackets."""
    named = [name for name in TITLES if all(name in line["metrics"] for line in lines)]
    rows = [[NAMES[line["method"]], *(_shown(line["metrics"][name], name) for name in named)] for line in lines]
    return markdown(["", *(TITLES[name] for name in named)], rows)


def _shown(metric: dict[str, float], name: str) -> str:
    times = 1000 if name.startswith("kid") else 100 if name.endswith("_right") else 1
    text = f"{times * metric['value']:.3g}{' %' if name.endswith('_right') else ''}"
    for other, form in (("baseline", " ({:+.0f}σ)"), ("asag", " [{:+.0f}σ]")):
        error = metric.get(f"to_{other}_error")
        sigmas = metric[f"to_{other}"] / error if error else 0.0
        if abs(sigmas) >= SURE:
            text = f"**{text}**" if other == "baseline" and BETTER.get(name, 0) * sigmas > 0 else text
            text += form.format(sigmas)
    return text


def page(lines: list[Line], choice: Choice) -> str:
    """The table with what it is of."""
    first = lines[0]
    has = "has the fingerprint" if choice.found else "comes nearest to the fingerprint, which no head has"
    about = f"{first['samples']} pictures a method, CFG {first['guidance_scale']:g}, {first['steps']} steps"
    about += f", other network: {first['network']} of nsfwjs" if first["network"] else ""
    words = (
        f"{about}; guided at {choice.blocks}, which {has}. (+5σ) is the difference to CFG in paired standard errors, "
        "from 3 on, and the value is bold where it is better; [+5σ] is the one to ASAG. What is measured, and how: "
        "research/asag/protocol-cell.md."
    )
    return f"# The decisive cell: {first['model']}\n\n{words}\n\n{table(lines)}\n"


def main(argv: list[str] | None = None) -> int:
    args = arguments.cell(argv)
    device = device_of(args)
    model = Model(args.model, args.half_size, args.steps, device)
    choice = chosen(args, model)
    found = "has the fingerprint" if choice.found else "comes nearest to the fingerprint, which no head has"
    print(f"{choice.blocks} {found}")
    try:
        cell = Cell(args, model, choice)
    except FileNotFoundError as error:
        args.error(f"--data: {error}")
    except NetworkError as error:
        args.error(f"--network: {error}")
    run_cell(args, cell)
    return 0


def chosen(args: argparse.Namespace, model: Model) -> Choice:
    """The place that the model's own fingerprint chooses; ends the command where there is none."""
    path = args.fingerprint or args.out / f"fingerprint-{model.name}.jsonl"
    lines = read_lines(path)
    if not lines:
        args.error(f"--fingerprint: {path} isn't there; allowed: what `python -m research fingerprint` wrote")
    if lines[0]["weights"] != model.weights():
        args.error(f"--fingerprint: {path} is of other weights; allowed: the one of this model")
    return choose(lines)


def run_cell(args: argparse.Namespace, cell: Cell) -> None:
    """Make this process's share of what is missing; write the lines and the table."""
    number, of = args.share
    # All methods with one seed before the next, so that what is broken off can be reported with fewer seeds.
    todo = [(cell.reference, part) for part in cell.parts(cell.reference)[number::of]]
    for seed in cell.size.seeds:
        shared = [part for part in cell.size.parts()[number::of] if part.seed == seed]
        todo += [(run, part) for run in cell.runs for part in shared]
    todo = [] if args.report else [(run, part) for run, part in todo if not cell.store.has(run, part)]
    for run, part in tqdm(todo, unit="part", desc=f"cell {cell.model.name}"):
        cell.make(run, part)
    found = list(cell.lines())
    if found:
        path: Path = args.out / f"cell-{cell.model.name}.jsonl"
        write_lines(path, found)
        replace_text(path.with_suffix(".md"), page(found, cell.choice))
        print(table(found))
    print(f"{len(found)} of {len(METHODS)} methods complete")
