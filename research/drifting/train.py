"""One-step generators trained by drift fields, one-sided and two-sided, over temperatures.

`python -m research drifting` writes results/drifting.jsonl, README.md and pictures into research/drifting; with
`--redraw` it makes the text and its figures from that drifting.jsonl. It needs the extra `evidence`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import ot
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from research import arguments
from research.drifting import report
from research.drifting.data import Target, load
from research.drifting.field import SWEEPS, coupling, one_sided_field, two_sided_field

METHODS = ("one-sided", "one-sided, no self-pairs", "two-sided")
# A class with fewer of the samples than this isn't covered.
LEAST_SHARE = 0.01


@dataclass(frozen=True)
class Training:
    """How a generator is trained. `hottest` is where Sinkhorn's cooling begins, twice the data's mean distance²."""

    steps: int = 1000
    batch: int = 128
    learning_rate: float = 3e-3
    width: int = 128
    sweeps: int = SWEEPS
    hottest: float = 4.0

    def field(self, samples: Tensor, data: Tensor, method: str, temperature: float) -> Tensor:
        """The drift (seeds, n, d) of samples (seeds, n, d) towards data (seeds, m, d)."""
        if method == "two-sided":
            return two_sided_field(samples, data, temperature, self.sweeps, self.hottest)
        return one_sided_field(samples, data, temperature, self_pairs=method == "one-sided")

    def column_error(self, samples: Tensor, data: Tensor, method: str, temperature: float) -> Tensor:
        """(seeds,): half the mean relative error of the columns' mass, which is the share of it at the wrong data."""
        sweeps = self.sweeps if method == "two-sided" else 0
        plan = coupling(samples, data, temperature, sweeps, self.hottest)
        return (plan.sum(dim=1) * data.shape[1] / samples.shape[1] - 1).abs().mean(dim=1) / 2


class Streams:
    """A random stream per seed, so that a seed's numbers don't depend on which others run with it."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def normal(self, *shape: int) -> Tensor:
        """(seeds, *shape) float32."""
        return torch.stack([torch.randn(shape, generator=generator) for generator in self.generators])

    def uniform(self, *shape: int) -> Tensor:
        """(seeds, *shape) float32 in [-1, 1)."""
        return torch.stack([torch.rand(shape, generator=generator) * 2 - 1 for generator in self.generators])

    def rows(self, points: Tensor, count: int) -> Tensor:
        """(seeds, count, d): rows of points (n, d), with replacement."""
        return torch.stack([points[torch.randint(len(points), (count,), generator=each)] for each in self.generators])


class Generators(nn.Module):
    """A perceptron per seed, side by side: noise (seeds, n, latent) float32 -> samples (seeds, n, d) float32."""

    def __init__(self, latent: int, width: int, out: int, streams: Streams) -> None:
        super().__init__()
        self.latent = latent
        sizes = list(pairwise((latent, width, width, width, out)))
        # As torch.nn.Linear begins.
        self.weights = nn.ParameterList(streams.uniform(before, after) / math.sqrt(before) for before, after in sizes)
        self.biases = nn.ParameterList(streams.uniform(1, after) / math.sqrt(before) for before, after in sizes)
        self.spread(streams.normal(1024, latent))

    @torch.no_grad()
    def spread(self, noise: Tensor) -> None:
        """Scale the last layer so that samples have mean 0 and total variance 1, as the data have.

        Otherwise all begin at nearly one point, and modes lost on that account would not be the field's fault.
        """
        deviation = self(noise).var(dim=1).sum(dim=1).sqrt()[:, None, None]
        self.weights[-1] /= deviation
        self.biases[-1] /= deviation
        self.biases[-1] -= self(noise).mean(dim=1, keepdim=True)

    def forward(self, noise: Tensor) -> Tensor:
        hidden = noise
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = F.silu(torch.baddbmm(bias, hidden, weight))
        return torch.baddbmm(self.biases[-1], hidden, self.weights[-1])


def train(
    target: Target, method: str, temperature: float, training: Training, seeds: Sequence[int]
) -> tuple[Generators, Streams]:
    """Generators trained by ``|f(z) - stopgrad(f(z) + V)|^2``, and their streams; the same for the same arguments.

    Raises:
        ValueError: where method or temperature isn't one.
    """
    if method not in METHODS:
        raise ValueError(f"method: {method!r}; allowed: {'; '.join(METHODS)}")
    streams = Streams(seeds)
    models = Generators(target.latent, training.width, target.train.shape[1], streams)
    optimizer = torch.optim.Adam(models.parameters(), training.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.steps)
    for _ in range(training.steps):
        data = streams.rows(target.train, training.batch)
        samples = models(streams.normal(training.batch, target.latent))
        here = samples.detach()
        goal = here + training.field(here, data, method, temperature)
        optimizer.zero_grad()
        # The sum over seeds: each has parameters of its own.
        (samples - goal).square().sum(dim=2).mean(dim=1).sum().backward()
        optimizer.step()
        schedule.step()
    return models.requires_grad_(False), streams


def class_figures(classes: Tensor, count: int) -> dict[str, float]:
    """Of samples' classes (n,) int64 out of `count`, -1 for none.

    coverage: share of the classes that have at least `LEAST_SHARE` of all samples; entropy: of the classes among
    the samples that have one, as a share of the largest possible; in_class: share of samples that have one.
    """
    counts = torch.bincount(classes[classes >= 0], minlength=count).double()
    shares = counts / counts.sum().clamp_min(1)
    return {
        "coverage": float((counts / len(classes) >= LEAST_SHARE).double().mean()),
        "entropy": float(torch.special.entr(shares).sum() / math.log(count)),
        "in_class": float(counts.sum() / len(classes)),
    }


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Squared Fréchet distance between Gaussians fitted to points (n, e) and (m, e), in squared units of theirs."""
    (mean, covariance), (other_mean, other_covariance) = (
        (points.double().mean(dim=0), points.double().T.cov()) for points in (first, second)
    )
    # The trace of a product's square root needs its eigenvalues only; rounding may leave them slightly negative.
    roots = torch.linalg.eigvals(covariance @ other_covariance).real.clamp_min(0).sqrt().sum()
    return float((mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * roots)


def judge(samples: Tensor, target: Target) -> dict[str, float]:
    """`class_figures`, emd (Euclidean, in the target's units) and fd, to the held-out data."""
    weights = [np.full(len(points), 1 / len(points)) for points in (samples, target.held_out)]
    distance = torch.cdist(samples.double(), target.held_out.double()).numpy()
    figures = class_figures(target.classify(samples), target.classes)
    figures["emd"] = float(ot.emd2(*weights, distance, numItermax=1_000_000))
    figures["fd"] = frechet_distance(target.features(samples), target.features(target.held_out))
    return figures


def with_errors(figures: list[dict[str, float]]) -> dict[str, Any]:
    """Each figure's mean over seeds, at least two, under `<name>_se` its standard error, and under `<name>_each` what
    every seed has, for paired differences."""
    result: dict[str, Any] = {}
    for name in figures[0]:
        values = torch.tensor([each[name] for each in figures], dtype=torch.float64)
        result |= {name: float(values.mean()), f"{name}_se": float(values.std() / math.sqrt(len(values)))}
        result[f"{name}_each"] = [float(f"{value:.6g}") for value in values.tolist()]
    return result


class Sweep:
    """The trainings of one target: `records`, and in `pictures` the samples of seed 0 by method and temperature."""

    def __init__(self, target: Target, training: Training, seeds: int) -> None:
        self.target, self.training, self.seeds = target, training, seeds
        self.records: list[dict[str, Any]] = []
        self.pictures: dict[tuple[str, float], Tensor] = {}

    def run(self, method: str, temperature: float) -> None:
        """Train by a method at a temperature, and record figures."""
        start = time.process_time()
        models, streams = train(self.target, method, temperature, self.training, range(self.seeds))
        seconds = time.process_time() - start
        samples = models(streams.normal(len(self.target.held_out), self.target.latent))
        self.pictures[method, temperature] = samples[0]
        batch = self.training.batch
        data = streams.rows(self.target.train, batch)
        errors = self.training.column_error(samples[:, :batch], data, method, temperature).tolist()
        figures = [
            {**judge(each, self.target), "column_error": error} for each, error in zip(samples, errors, strict=True)
        ]
        self._record(method, temperature, figures, {**asdict(self.training), "train_seconds": seconds})

    def floor(self) -> None:
        """What as many of the training data score: no generator can be expected to do better."""
        drawn = (
            torch.randperm(len(self.target.train), generator=torch.Generator().manual_seed(seed))
            for seed in range(self.seeds)
        )
        count = len(self.target.held_out)
        self._record("data", None, [judge(self.target.train[order[:count]], self.target) for order in drawn], {})

    def ignorance(self) -> None:
        """What a single Gaussian with the data's mean and covariance scores: a generator that learned no class."""
        train, figures = self.target.train.double(), []
        # A little more than nothing on the diagonal: some pixels never change.
        root = torch.linalg.cholesky(train.T.cov() + 1e-9 * torch.eye(train.shape[1], dtype=torch.float64))
        for seed in range(self.seeds):
            generator = torch.Generator().manual_seed(seed)
            normal = torch.randn(len(self.target.held_out), train.shape[1], generator=generator, dtype=torch.float64)
            figures.append(judge((normal @ root.T + train.mean(dim=0)).float(), self.target))
        self._record("one Gaussian", None, figures, {})

    def _record(
        self, method: str, temperature: float | None, figures: list[dict[str, float]], settings: dict[str, Any]
    ) -> None:
        found = {"experiment": "drifting", "data": self.target.name, "method": method, "temperature": temperature}
        self.records.append({**found, "seeds": self.seeds, **settings, **with_errors(figures)})
        print(json.dumps(self.records[-1]), flush=True)


def run(args: argparse.Namespace) -> list[Sweep]:
    """The sweeps that the command line asks for, trained."""
    torch.set_num_threads(args.threads)
    # At low temperatures most of a kernel is nearly 0, and arithmetic on subnormal numbers is slow.
    torch.set_flush_denormal(True)
    try:
        return [sweep_of(args, name) for name in args.data]
    finally:
        torch.set_flush_denormal(False)


def sweep_of(args: argparse.Namespace, name: str) -> Sweep:
    sweep = Sweep(load(name), Training(steps=args.digits_steps if name == "digits" else args.steps), args.seeds)
    sweep.floor()
    sweep.ignorance()
    for temperature in args.temperatures:
        for method in METHODS:
            sweep.run(method, temperature)
    return sweep


def main(argv: list[str] | None = None) -> int:
    args = arguments.drifting(argv)
    lines, images = args.out / "results" / "drifting.jsonl", args.out / "images"
    for folder in (lines.parent, images):
        folder.mkdir(parents=True, exist_ok=True)
    if not args.redraw:
        sweeps = run(args)
        lines.write_text("".join(json.dumps(found) + "\n" for sweep in sweeps for found in sweep.records))
        for sweep in sweeps:
            report.draw_samples(sweep.target, sweep.pictures, images / f"drifting-{sweep.target.name}.png")
    # From the file in both cases, so that nothing else gets into the text.
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    (args.out / "README.md").write_text(report.document(records))
    report.draw_figures(records, images / "drifting-figures.png")
    return 0
