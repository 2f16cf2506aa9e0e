"""How far each step of a run is pushed, and what is kept of that for the notes and the figure."""

from __future__ import annotations

import torch
from torch import Tensor

from asag.settings import AsagSettings
from asag.trace import Trace
from asag.units import UnitScale


class Scaling:
    """What δ is multiplied by in the steps of one run.

    `largest` is the largest number of δ so far, None before the first. It is kept on the device: to read it in every
    step would wait for it.
    """

    def __init__(self, settings: AsagSettings, trace: Trace | None) -> None:
        self.unit, self.trace = UnitScale(settings.unit), trace
        self.largest: Tensor | None = None

    @property
    def needs_cfg(self) -> bool:
        """Whether CFG's own push has to be known."""
        return self.unit.unit == "cfg" or self.trace is not None

    def factor(
        self, call: int, scale: float, delta: Tensor, sigma: float | Tensor, cfg: Tensor | None, reused: bool
    ) -> float | Tensor:
        """What δ, (images, …), is multiplied by in a model call; of each image, (images, 1, …), where the unit says so.

        delta / sigma is δ of the noise or velocity: a denoised picture's is σ times that. `cfg` is CFG's own push
        (asag.guidance.cfg_push) in the space of delta; None in a step without CFG, or where it isn't needed. `reused`:
        whether δ is one of an earlier call.
        """
        self.largest = _larger(self.largest, delta)
        if self.unit.unit == "paper" and not self.trace:
            return scale
        free, free_cfg = delta / sigma, None if cfg is None else cfg / sigma
        used = self.unit(scale, free, free_cfg)
        if self.trace:
            self.trace.add_step(call, used, free, reused=reused, cfg=free_cfg)
        return used


def _larger(before: Tensor | None, now: Tensor) -> Tensor:
    largest = now.detach().abs().amax()
    return largest if before is None else torch.maximum(before, largest.to(before))
