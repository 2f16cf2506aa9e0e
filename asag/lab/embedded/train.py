"""`python -m asag train`: trains the classifier and a model (UNet or MMDiT) from a seed and exports the folder.

Checkpoints are written every two minutes and when the process is asked to end (SIGTERM), and `--resume` goes on from
the last one, bit for bit where the budget is `--images`. A budget of `--minutes` ends on time on any machine, but how
many pictures fit is then the machine's affair.
"""

from __future__ import annotations

import json
import time
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors.torch import save_file

from asag.lab import arguments
from asag.lab.embedded.classifier import accuracy, train_classifier
from asag.lab.embedded.source import Drawn, Source
from asag.lab.embedded.subjects import SUBJECTS, Subject
from asag.lab.embedded.training import Training, Way, asked_to_end, learning_rate

_CHECKPOINT_SECONDS = 120
_LOG_STEPS = 50


class Recipe(Protocol):
    """What is trained on what; `args` are those of `arguments.train`."""

    def source(self, name: str) -> Source: ...

    def subject(self, name: str) -> Subject: ...

    def train_judge(self, folder: Path) -> str | None:
        """Train the classifier and write it into the folder; says how good it is. None: it was asked to end before."""

    def watch(self, training: Training, out: Path) -> None:
        """Called after each export into out/model."""


class DrawnRecipe:
    """The drawn shapes' own."""

    def __init__(self, args: Namespace) -> None:
        self.args = args

    def source(self, name: str) -> Source:
        return Drawn()

    def subject(self, name: str) -> Subject:
        return SUBJECTS[name]()

    def train_judge(self, folder: Path) -> str | None:
        generator = torch.Generator(self.args.device).manual_seed(self.args.seed)
        classifier = train_classifier(self.args.classifier_steps, generator).cpu()
        save_file(classifier.state_dict(), folder / "classifier.safetensors")
        return f"{accuracy(classifier, 2000, self.args.seed + 1):.2%} of 2000 fresh drawings exactly right"

    def watch(self, training: Training, out: Path) -> None:
        """Nothing: `python -m asag quality` draws a sheet."""


class Budget(NamedTuple):
    """`images` pictures where not 0, else `minutes` over all resumed runs; a batch and the highest learning rate."""

    batch: int
    peak: float
    images: int = 0
    minutes: float = 0

    def progress(self, training: Training) -> float:
        return training.images / self.images if self.images else training.seconds / (60 * self.minutes)


def train_model(training: Training, out: Path, budget: Budget, recipe: Recipe) -> None:
    """Runs until the budget is used or SIGTERM comes, then writes the checkpoint and out/model."""
    started = time.monotonic() - training.seconds
    saved, losses = training.seconds, []
    with asked_to_end() as ended:
        while not ended:
            training.seconds = time.monotonic() - started
            progress = budget.progress(training)
            if progress >= 1:
                break
            losses.append(training.update(budget.batch, learning_rate(budget.peak, training.step, progress)))
            if training.step % _LOG_STEPS == 0:
                _log(training, float(torch.stack(losses).mean()), progress, out)
                losses.clear()
            if training.seconds - saved > _CHECKPOINT_SECONDS:
                saved = training.seconds
                _keep(training, out, recipe)
    _keep(training, out, recipe)


def _keep(training: Training, out: Path, recipe: Recipe) -> None:
    training.save(out / "checkpoint.pt")
    training.export(out / "model")
    recipe.watch(training, out)


def _log(training: Training, loss: float, progress: float, out: Path) -> None:
    row = {
        "step": training.step,
        "images": training.images,
        "seconds": round(training.seconds),
        "loss": round(loss, 5),
        "progress": round(progress, 4),
    }
    with (out / "loss.jsonl").open("a") as log:
        print(json.dumps(row), file=log)


def forget_after(step: int, log: Path) -> None:
    """Take those lines out of a log that were written after the checkpoint of `step`: they will be written again."""
    if log.exists():
        lines = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= step]
        log.write_text("".join(f"{line}\n" for line in lines))


def _way(args: Namespace) -> Way:
    return Way(getattr(torch, args.dtype), args.compile, args.optimiser == "muon")


def _recipe(args: Namespace) -> Recipe:
    if args.data is None:
        return DrawnRecipe(args)
    from asag.lab.renderings.adapters import BaseError
    from asag.lab.renderings.recipe import RenderingsRecipe

    try:
        return RenderingsRecipe(args)
    except FileNotFoundError as error:
        return args.error(f"--data: {error}")  # type: ignore[no-any-return]
    except BaseError as error:
        return args.error(f"--base: {error}")  # type: ignore[no-any-return]


def main(argv: list[str] | None = None) -> int:
    args = arguments.train(argv)
    torch.set_num_threads(args.threads)
    recipe = _recipe(args)
    model = args.out / "model"
    model.mkdir(parents=True, exist_ok=True)
    judged = any(model.glob("classifier.safetensors")) or any(model.glob("judge.safetensors"))
    if "classifier" in args.parts and not (args.resume and judged):
        torch.manual_seed(args.seed)
        found = recipe.train_judge(model)
        print(f"classifier: {found or 'ended, to go on with --resume'}", flush=True)
        if found is None:
            return 0
    for name in (name for name in (*SUBJECTS, *arguments.ADAPTERS) if name in args.parts):
        parts = recipe.subject(name), recipe.source(name), _way(args)
        training = Training(args.seed, torch.device(args.device), *parts)
        if args.resume and (args.out / "checkpoint.pt").exists():
            training.load(args.out / "checkpoint.pt")
            forget_after(training.step, args.out / "loss.jsonl")
        train_model(training, args.out, Budget(args.batch, args.rate, args.images or 0, args.minutes), recipe)
        print(f"{name}: {training.images} pictures in {training.seconds / 60:.1f} minutes, exported to {model}")
    return 0
