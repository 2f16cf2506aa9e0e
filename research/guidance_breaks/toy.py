"""The 2-D experiment of "When guidance breaks" again; `adaptive_report` runs it and writes it up.

A Gaussian mixture's exact reverse SDE is guided by the reward r(x) = exp(-‖x - c‖²) with fixed and adaptive λ (the
paper's Section 5.1, Table 1, Fig. 1 to 4). The paper leaves much out. What is chosen here:

- The mixture: modes of equal weight on a circle about the origin. Where they lie and where c lies is tried
  (experiment "readings"); MAIN is the one of these closest to the fixed rows of the paper's Table 1.
- Whether λ∇log r is multiplied by β(t) as the score is. By Section 3.1 it is, as a part of the score
  (`times_beta`); a plain force in the drift is tried too. ∇log r is taken at x_t, as Eq. 2 and Section 5.1 write it.
- Reward: the mean of exp(-‖x - c‖²). Diversity: the mean distance between two samples, in parts of that between
  unguided ones of the same seed. The paper's is LPIPS for pictures, a mean distance of pairs, and unnamed in 2-D.
- Collapse: "Yes" below a diversity of 0.1, "Partial" below 0.3: what fits the paper's own four fixed rows.
- Time runs from 1 to 0 in equal steps; λ is the same for a whole step. Bell: sin², the one ASAG has.
- Clipping, soft guidance and dynamic thresholding: see `adaptive_guides`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from asag.guidance import scheduled_scale
from research.guidance_breaks import figures, guides, tables
from research.guidance_breaks.guides import Guide, Moment, length
from research.guidance_breaks.mixture import Mixture, beta, ring, signal


@dataclass(frozen=True)
class Scene:
    """A mixture and what is wanted of it. `centre` is c."""

    modes: int = 8
    radius: float = 0.5
    spread: float = 0.1
    centre: tuple[float, float] = (0.25, 0.0)

    def mixture(self) -> Mixture:
        return ring(self.modes, self.radius, self.spread)


MAIN = Scene()


@dataclass(frozen=True)
class Case:
    """One setting of the sampler. `method`: "unguided", "target" (exact samples of p r^λ, no sampler) or a name that
    `guide_of` knows; `scale`: λ, or λ₀; `momentum` and `epsilon` are α and ε of the adaptive scale; `bound` is M."""

    scene: Scene
    times_beta: bool
    method: str
    scale: float
    schedule: str = "constant"
    momentum: float = 0.9
    epsilon: float = 1e-3
    bound: float = 1.0
    steps: int = 500


@dataclass(frozen=True)
class Outcome:
    """What a run gave, all float64: `points` (seeds, samples, 2); and (seeds, samples) each `energy`, the
    Σ_t ‖λ_t∇log r(x_t)‖² Δt of Section 5.1, and the coefficients of variation over the steps, both with the
    schedule divided out, of λ_t (`scale_variation`) and of the push ‖λ_t∇log r‖ (`push_variation`)."""

    points: Tensor
    energy: Tensor
    scale_variation: Tensor
    push_variation: Tensor


def guide_of(case: Case) -> Guide:
    """A fresh rule for one run of `case`. Raises ValueError for a method there isn't."""
    rules = {
        "fixed": guides.fixed,
        "adaptive": guides.adaptive(case.momentum, case.epsilon),
        "clip-gradient": guides.clip_gradient(case.bound),
        "clip-term": guides.clip_term(case.bound),
        "soft": guides.soft(case.bound),
        "threshold": guides.dynamic_threshold(case.scene.mixture().extent()),
        "unguided": lambda moment: 0 * moment.gradient,
    }
    if case.method not in rules:
        raise ValueError(f"method: {case.method!r}; allowed: {', '.join(rules)}")
    return rules[case.method]


class Running:
    """The coefficient of variation of a quantity, (points, 1), over the steps."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, value: Tensor) -> None:
        self.count, self.total, self.squares = self.count + 1, self.total + value, self.squares + value.square()

    def variation(self) -> Tensor:
        mean = self.total / self.count
        return (self.squares / self.count - mean.square()).clamp_min(0).sqrt() / mean.clamp_min(1e-12)


def simulate(case: Case, seeds: Sequence[int], samples: int) -> Outcome:
    """Euler-Maruyama on the guided reverse SDE, from N(0, I) at t = 1 to t = 0 (Sections 3.1 and 5.1).

    Every seed has its own noise, the same for all cases of as many steps; what a seed gives doesn't depend on which
    other seeds run with it. Raises ValueError for an unknown method or schedule.
    """
    mixture, guide = case.scene.mixture(), guide_of(case)
    centre = torch.tensor(case.scene.centre, dtype=torch.float64)
    generators = [Generator().manual_seed(seed) for seed in seeds]

    def noise() -> Tensor:
        return torch.cat([torch.randn(samples, 2, generator=generator) for generator in generators]).double()

    x, energy = noise(), torch.zeros(len(seeds) * samples, 1, dtype=torch.float64)
    relative_scale, relative_push = Running(), Running()
    width = 1 / case.steps
    for step in range(case.steps):
        now = 1 - step * width
        rate = beta(now)
        gain = 1.0 if case.times_beta else 1 / rate
        gradient, score = -2 * (x - centre), mixture.at(now).score(x)
        scale = scheduled_scale(case.scale, case.schedule, step, case.steps, 0.0, 1.0)
        push = guide(Moment(x, score, gradient, scale, signal(now), gain))
        size = length(push)
        energy += size.square() * width
        relative_push.add(size / (scale or 1.0))
        relative_scale.add(size / length(gradient) / (scale or 1.0))
        # The reverse of dx = -½βx dt + √β dw, with G as a part of the score (gain 1) or of the drift (gain 1/β).
        x = x + rate * width * (0.5 * x + score + gain * push) + math.sqrt(rate * width) * noise()
    shape = len(seeds), samples
    variations = [each.variation().view(shape) for each in (relative_scale, relative_push)]
    return Outcome(x.view(*shape, 2), energy.view(shape), *variations)


def draw_target(case: Case, seeds: Sequence[int], samples: int) -> Tensor:
    """Exact samples, (seeds, samples, 2), of p r^λ, what guidance means to sample (Eq. 1)."""
    tilted = case.scene.mixture().tilted(torch.tensor(case.scene.centre, dtype=torch.float64), case.scale)
    return torch.stack([tilted.draw(samples, Generator().manual_seed(seed)) for seed in seeds])


def mean_reward(points: Tensor, centre: tuple[float, float]) -> Tensor:
    """The mean of exp(-‖x - c‖²) per seed, (seeds,), of points (seeds, samples, 2)."""
    return (points - torch.tensor(centre, dtype=points.dtype)).square().sum(-1).neg().exp().mean(-1)


def mean_distance(points: Tensor) -> Tensor:
    """The mean distance between two samples per seed, (seeds,), of points (seeds, samples, 2)."""
    return torch.stack([torch.pdist(each).mean() for each in points])


def modes_kept(points: Tensor, mixture: Mixture) -> Tensor:
    """exp(entropy of the nearest mode) / modes per seed, (seeds,): 1 where all are equally full, 1 / modes where one
    has everything."""
    counts = torch.stack([mixture.nearest(each).bincount(minlength=len(mixture.means)) for each in points])
    shares = counts / points.shape[1]
    entropy: Tensor = torch.special.entr(shares).sum(-1)
    return entropy.exp() / len(mixture.means)


class Experiment:
    """Runs cases over seeds, each once, and says what they gave as JSON-able lines."""

    def __init__(self, seeds: Sequence[int], samples: int) -> None:
        if len(seeds) < 2 or samples < 2:
            raise ValueError(f"seeds: {len(seeds)}, samples: {samples}; allowed: at least 2 of each")
        self.seeds, self.samples = list(seeds), samples
        self.done: dict[Case, dict[str, list[float]]] = {}
        self.apart: dict[tuple[Scene, int], Tensor] = {}

    def line(self, experiment: str, case: Case) -> dict[str, Any]:
        """A case's settings and its metrics, each as [mean over seeds, standard error of that mean]."""
        if case not in self.done:
            self.done[case] = {name: with_error(per_seed) for name, per_seed in self._metrics(case).items()}
        settings = {"experiment": experiment, **asdict(case), "seeds": self.seeds, "samples": self.samples}
        return settings | {"metrics": self.done[case]}

    def _unguided_distance(self, scene: Scene, steps: int) -> Tensor:
        if (scene, steps) not in self.apart:
            points = simulate(Case(scene, True, "unguided", 0.0, steps=steps), self.seeds, self.samples).points
            self.apart[scene, steps] = mean_distance(points)
        return self.apart[scene, steps]

    def _metrics(self, case: Case) -> dict[str, Tensor]:
        more = {}
        if case.method == "target":
            points = draw_target(case, self.seeds, self.samples)
        else:
            outcome = simulate(case, self.seeds, self.samples)
            points, more = outcome.points, {"energy": outcome.energy.mean(-1)}
            if case.method == "adaptive":
                more["scale_variation"] = outcome.scale_variation.mean(-1)
                more["push_variation"] = outcome.push_variation.mean(-1)
        apart = mean_distance(points)
        return {
            "reward": mean_reward(points, case.scene.centre),
            "diversity": apart / self._unguided_distance(case.scene, case.steps),
            "distance": apart,
            "modes": modes_kept(points, case.scene.mixture()),
            **more,
        }


def with_error(per_seed: Tensor) -> list[float]:
    """[mean, standard error of the mean] over seeds, of (seeds,), to 5 digits."""
    unit = per_seed.abs().max().clamp_min(1e-300)  # an energy of 1e150 would overflow when squared
    mean, error = per_seed.mean(), (per_seed / unit).std() * unit / math.sqrt(len(per_seed))
    return [float(f"{value.item():.5g}") for value in (mean, error)]


def points_line(case: Case, seed: int, samples: int) -> dict[str, Any]:
    """The samples themselves, to be drawn."""
    points = simulate(case, [seed], samples).points[0]
    rounded = [[round(value, 3) for value in point] for point in points.tolist()]
    return {"experiment": "points", **asdict(case), "seeds": [seed], "samples": samples, "points": rounded}


def run(seeds: Sequence[int], samples: int, small_samples: int = 200) -> Iterator[dict[str, Any]]:
    """Every line of the report, as dicts that JSON can hold; the many small readings take `small_samples` a seed.
    Raises ValueError for fewer than 2 seeds or samples."""
    small, large = Experiment(seeds, small_samples), Experiment(seeds, samples)
    yield from run_readings(small)
    yield from run_main(small, large)


def run_readings(small: Experiment) -> Iterator[dict[str, Any]]:
    """Table 1 on every mixture tried."""
    for scene in scenes():
        for times_beta in (True, False):
            for method, scale, schedule in tables.READING_COLUMNS:
                yield small.line("readings", Case(scene, times_beta, method, scale, schedule))


def run_main(small: Experiment, large: Experiment) -> Iterator[dict[str, Any]]:
    """Table 1, the energy and the ablations on MAIN; more steps on fewer samples; samples to be drawn."""
    for times_beta in (True, False):
        yield large.line("frontier", Case(MAIN, times_beta, "unguided", 0.0))
        for method, schedule, scales in tables.FRONTIER:
            for scale in scales:
                if scale <= 100 or not times_beta:  # fixed λ beyond overflows even float64 on its way
                    yield large.line("frontier", Case(MAIN, times_beta, method, scale, schedule))
        for schedule in ("constant", "bell"):
            for momentum in (0.0, 0.5, 0.8, 0.9, 0.99):
                case = Case(MAIN, times_beta, "adaptive", 50.0, schedule, momentum=momentum)
                yield large.line("momentum", case)
            for epsilon in (1e-4, 1e-3, 1e-2):
                yield large.line("epsilon", Case(MAIN, times_beta, "adaptive", 50.0, schedule, epsilon=epsilon))
        for method, scale in (("fixed", 20.0), ("fixed", 50.0), ("adaptive", 50.0)):
            for steps in (500, 2000):
                yield small.line("steps", Case(MAIN, times_beta, method, scale, steps=steps))
        for method, scale, schedule in figures.POINTS:
            yield points_line(Case(MAIN, times_beta, method, scale, schedule), large.seeds[0], 400)


def scenes() -> Iterator[Scene]:
    """The mixtures and rewards tried: c on a mode, half way to it, and amid all."""
    for radius in (0.5, 1.0, 2.0):
        for spread in (0.1, 0.3):
            for share in (1.0, 0.5, 0.0):
                yield Scene(8, radius, spread, (share * radius, 0.0))
