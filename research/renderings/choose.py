"""`python -m research choose`: the settings with which the demo shows each method.

The rule, written down before anything was sampled for it: a method's setting is the one with which the judge gives the
asked names the highest mean log-probability, among those with which at most half as many values again as with CFG alone
lie at the ends of the scale (burnt colours). All have the same captions and noise; the demo has other noise.

Two more tables are no part of the choice: the methods where CFG is lower, and what was chosen, asked for names that the
training left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import product
from typing import Any, NamedTuple

import torch

from asag.lab.renderings import shipped
from asag.lab.renderings.judge import Judge, load_judge
from asag.lab.renderings.quality import asked_names
from research import arguments
from research.asag.cell.model import weights_of
from research.device import device_of
from research.lines import Line, markdown, read_lines, replace_text, write_lines

METHODS = ("pag", "seg", "asag")
BLOCKS = ("in.3", "mid", "out.0-1", "all")
SCALES = (0.25, 0.5, 1.0)
STRONG = ("all", "out.0-1")  # blocks in which more of ASAG's options are tried, and which are seen at a lower CFG
LOW_CFG = (1.5, 2.0)
SEED = 500
BURNT = 0.98  # values of a picture lie between -1 and 1
_MOST_BURNT = 1.5  # times as many as with CFG alone
_OPTIONS = ("scale", "strength", "contrast")
_FIGURES = ("log_probability", "right", "burnt")


class Case(NamedTuple):
    """The extension's settings (none: CFG alone) and the CFG scale."""

    settings: dict[str, Any]
    cfg: float = shipped.CFG


def given(method: str, blocks: str, scale: float, **more: float) -> dict[str, Any]:
    return {"method": method, "blocks": blocks, "scale": scale, "unit": "cfg", **more}


def candidates() -> Iterator[dict[str, Any]]:
    """CFG alone first, as no settings; then every method in every block, then more of ASAG's options."""
    yield {}
    for method, blocks, scale in product(METHODS, BLOCKS, SCALES):
        yield given(method, blocks, scale)
    for blocks in STRONG:
        for strength, scale in product((0.25, 0.5), (0.5, 1.0)):
            yield given("asag", blocks, scale, strength=strength)
        yield given("asag", blocks, 0.5, contrast=0.0)
        for scale in (0.5, 1.0):
            yield given("asag", f"{blocks}:aligned", scale)


def cases(table: str, searched: Sequence[Line]) -> list[Case]:
    """What a table has a row for; `searched` are the lines of the search."""
    if table == "search":
        return [Case(settings) for settings in candidates()]
    if table == "low-cfg":
        guided = [given(method, blocks, 0.5) for blocks in STRONG for method in METHODS]
        return [Case(settings, cfg) for cfg in LOW_CFG for settings in ({}, *guided)]
    return [Case({}), *(Case(each["settings"]) for each in best_of(searched))]


@torch.no_grad()
def measured(judge: Judge, images: torch.Tensor, names: Sequence[str]) -> Line:
    """The mean log-probability of the names, the share of them that is right, and of burnt values."""
    logits = judge(images.to(judge.device))[0].double().log_softmax(1).cpu()
    rows = torch.tensor([judge.names.index(name) for name in names])
    return {
        "log_probability": float(logits.gather(1, rows[:, None]).mean()),
        "right": float((logits.argmax(1) == rows).double().mean()),
        "burnt": float((images.abs() > BURNT).double().mean()),
    }


def chosen(lines: Sequence[Line], method: str) -> Line:
    """The line of `method` that the rule names. Raises ValueError where none fits it."""
    limit = _MOST_BURNT * next(each["burnt"] for each in lines if not each["settings"])
    fitting = [each for each in lines if each["settings"].get("method") == method and each["burnt"] <= limit]
    if not fitting:
        raise ValueError(f"method: {method}; allowed: one with a setting that burns no more than {limit:.4f}")
    return max(fitting, key=lambda each: float(each["log_probability"]))


def best_of(lines: Sequence[Line]) -> list[Line]:
    """The chosen line of each method that has one."""
    found = []
    for method in METHODS:
        with suppress(ValueError):
            found.append(chosen(lines, method))
    return found


def page(lines: Sequence[Line], best: Sequence[Line] = ()) -> str:
    """A table with a row for each line; those of `best` are marked."""
    rows = []
    for each in lines:
        settings = each["settings"]
        about = [settings.get("method", "CFG alone"), settings.get("blocks", "")]
        about += [f"{settings[name]:g}" if name in settings else "" for name in _OPTIONS]
        figures = [f"{each[name]:.{4 if name == 'burnt' else 3}f}" for name in _FIGURES]
        rows.append([f"{each['guidance_scale']:g}", *about, *figures, "yes" if each in best else ""])
    names = ["log-probability", "right", "burnt", "chosen"]
    return markdown(["CFG", "method", "blocks", *_OPTIONS, *names], rows)


class Search:
    """Samples the cases of a table, and keeps a line for each in a file."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.weights = args, weights_of(args.model)
        self.pipeline, self.captions = shipped.fast_pipeline(args.model, device=device), shipped.Captions(args.model)
        self.judge = load_judge(args.judge or args.model).to(device)

    def lines(self, table: str) -> list[Line]:
        """All lines of a table; those that its file already has aren't measured again. Those of the search are there
        before those of names that were left out."""
        path = self.args.out / f"choose{'' if table == 'search' else f'-{table}'}.jsonl"
        names, _ = asked_names(self.judge, self.args.samples, SEED, left_out=table == "held-out")
        known, found = read_lines(path), []
        for case in cases(table, self.lines("search") if table == "held-out" else []):
            about = {"weights": self.weights, "samples": len(names), "half_size": self.args.half_size}
            about |= {"guidance_scale": case.cfg, "settings": case.settings}
            line = next((each for each in known if about.items() <= each.items()), None)
            if line is None:
                line = about | measured(self.judge, self._sampled(names, case), names)
                print(json.dumps(line), flush=True)
            found.append(line)
            write_lines(path, found)
        marked = best_of(found) if table == "search" else []
        replace_text(path.with_suffix(".md"), page(found, marked) + "\n")
        return found

    def _sampled(self, names: Sequence[str], case: Case) -> torch.Tensor:
        options = {"guidance_scale": case.cfg, "num_inference_steps": shipped.SOLVER_STEPS, "seed": SEED}
        options["half_size"] = self.args.half_size
        return shipped.guided_sample(self.pipeline, self.captions, names, case.settings, **options)


def main(argv: list[str] | None = None) -> int:
    args = arguments.choose(argv)
    search = Search(args, device_of(args))
    for table in args.table:
        search.lines(table)
        print((args.out / f"choose{'' if table == 'search' else f'-{table}'}.md").read_text())
    return 0
