"""Where a generation stands by its noise: levels and percentages of a model's noise schedule, and windows of them.

A moment of the settings is a fraction of the steps (0.5), a percentage of the noise schedule ("60%") or a noise level
("sigma 5.4"). All noise is counted as a share of the schedule: 0 is the noisiest, 1 is no noise.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from asag.guidance import scale_at

LARGEST_SIGMA = 100000.0
LONGEST_TEXT = 60
ALLOWED = "a noise level such as sigma 5.4, or 0% to 100% of the noise schedule"

NUMBER = r"(\d{1,6}(?:\.\d{0,9})?|\.\d{1,9})"
PERCENT = re.compile(NUMBER + r"\s*%", re.ASCII)
SIGMA = re.compile(r"(?:σ|sigma)\s*=?\s*" + NUMBER, re.ASCII)
# Hosts hold noise levels in float32.
ROUNDING = 1e-6

Moment = float | str


def read_noise(text: str) -> str | None:
    """A percentage or a noise level as it is kept: "60%", "sigma 5.4"; σ stands for sigma. None when it is neither."""
    text = text.strip().lower()
    if len(text) > LONGEST_TEXT:
        return None
    percent, sigma = PERCENT.fullmatch(text), SIGMA.fullmatch(text)
    if percent and float(percent[1]) <= 100:
        return f"{_written(percent[1])}%"
    if sigma and float(sigma[1]) <= LARGEST_SIGMA:
        return f"sigma {_written(sigma[1])}"
    return None


def _written(number: str) -> str:
    """As NUMBER reads it: without an exponent."""
    return f"{float(number):.9f}".rstrip("0").rstrip(".")


def print_moment(moment: Moment) -> str:
    """As text that is read as the same moment: two thirds in six digits would leave out a step."""
    if isinstance(moment, str):
        return moment
    short = f"{moment:g}"
    return short if float(short) == moment else repr(moment)


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise levels σ of a model's training timesteps, rising, in k-diffusion's units √((1-ᾱ)/ᾱ); none: a
    flow-matching model, whose σ is the share of noise in x, 0 to 1.

    As in ComfyUI's percent_to_sigma the share of the schedule is that of the timesteps, counted from the noisiest, with
    log σ linear between two of them; in a flow-matching model it is 1 - σ.
    """

    sigmas: tuple[float, ...] = ()

    @classmethod
    def of_alphas(cls, alphas: Iterable[float]) -> NoiseSchedule:
        """Of a model's ᾱ, which fall over the timesteps."""
        return cls(tuple(math.sqrt((1 - alpha) / alpha) if alpha > 0 else math.inf for alpha in alphas))

    def share(self, sigma: float) -> float:
        """The share of the schedule that is over at a noise level, 0 to 1."""
        if not self.sigmas:
            return 1 - min(max(sigma, 0.0), 1.0)
        if sigma <= self.sigmas[0]:
            return 1.0
        if sigma >= self.sigmas[-1]:
            return 0.0
        above = bisect_right(self.sigmas, sigma)
        low, high = (math.log(each) for each in self.sigmas[above - 1 : above + 1])
        return self.share_at(above - 1 + (math.log(sigma) - low) / (high - low))

    def share_at(self, timestep: float) -> float:
        """The share that is over at a timestep, which may lie between two."""
        return 1 - min(max(timestep / (len(self.sigmas) - 1), 0.0), 1.0)

    def of(self, moment: Moment) -> float:
        """The share at which a moment lies; 0 and 1, the ends of the steps, are those of the schedule."""
        if not isinstance(moment, str):
            return moment
        return float(moment[:-1]) / 100 if moment.endswith("%") else self.share(float(moment.split()[1]))


@dataclass(frozen=True)
class Window:
    """From start, included, to end, excluded."""

    start: Moment
    end: Moment

    @property
    def by_noise(self) -> bool:
        """Whether noise decides, and not the number of a step."""
        return isinstance(self.start, str) or isinstance(self.end, str)

    @property
    def problem(self) -> str:
        """Why start and end don't go together, as a line for the user; empty when they do."""
        fractions = [each for each in (self.start, self.end) if not isinstance(each, str)]
        if not self.by_noise or all(each in (0, 1) for each in fractions):
            return ""
        return (
            f"start: {print_moment(self.start)} with end: {print_moment(self.end)}; allowed: two fractions of the "
            "steps, or two of noise (sigma, %); 0 and 1 go with both"
        )

    @property
    def empty(self) -> str:
        """Why no step lies in it, for the user; empty when some may. A percentage and a level aren't compared."""
        (kind, first), (other, last) = (_kind_and_order(each) for each in (self.start, self.end))
        if first < last if kind == other else self.start != 1 and self.end != 0:
            return ""
        return f"start, {print_moment(self.start)}, isn't before end, {print_moment(self.end)}"

    def scale(self, scale: float, schedule: str, noise: NoiseSchedule, share: float, calls: int) -> float:
        """The guidance scale in a window by noise, at a model call where `share` of the noise schedule is over: as
        scheduled_scale, with that share in place of the steps'. `calls` are the model calls of the pass."""
        # What has noise left isn't at the end.
        place = min(share + ROUNDING, 1 - ROUNDING)
        return scale_at(scale, schedule, place, calls, noise.of(self.start), noise.of(self.end))


def _kind_and_order(moment: Moment) -> tuple[str, float]:
    """What kind of moment it is, and a number that rises from earlier ones of its kind to later ones."""
    if not isinstance(moment, str):
        return "steps", moment
    return ("percent", float(moment[:-1])) if moment.endswith("%") else ("level", -float(moment.split()[1]))
