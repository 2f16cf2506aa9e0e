"""The unit of the scale: what a scale of 1 means, and so what each step's δ is multiplied by."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from asag.guidance import AdaptiveScale, rms
from asag.option import InUnit

# paper: the scale multiplies δ. push: the scale is the size of the push. cfg: it is that size beside CFG's own push.
UNITS = ("paper", "push", "cfg")
# Of the average in unit cfg. δ grows tenfold within a few steps. With adaptive guidance's average, 0.9, which lags,
# pushes at one scale lay within a factor of 4 to 5, and so within one of 2 (research/asag/findings.md).
MOMENTUM = 0.5
# ‖δ‖ beside CFG's push: a smaller δ may be what float16 leaves of a difference, and isn't blown up to CFG's size.
FLOOR = 2e-3
# The push that a scale of 1 stands for in unit cfg where there is no CFG: about the size of CFG's own in the small
# models, 0.04 to 0.5 at CFG scales of 2 to 4.
WITHOUT_CFG = 0.1
# Where δ is so many times as large as CFG's push, that push is one of rounding: both prompts are the same then.
# The largest quotient in the small models was 20, at a CFG scale of 1.5. It is the same in all prediction spaces.
FAINT = 200.0


def scales(help: str = "") -> dict[str, InUnit]:
    """How the page shows a scale in each unit; `help` replaces that of the units."""
    found = {
        "paper": InUnit(10.0, 0.1, "How strongly ASAG changes the picture. Try 0.5 to 4; the paper uses 1.5."),
        "push": InUnit(0.5, 0.005, "How far ASAG changes the picture in each step. Try 0.02 to 0.2."),
        "cfg": InUnit(
            2.0, 0.05, "How strong ASAG is compared with CFG: 0.3 is about a third as strong. Try 0.1 to 0.5."
        ),
    }
    return {unit: shown._replace(help=help or shown.help) for unit, shown in found.items()}


class UnitScale:
    """What δ is multiplied by, of each image, over the steps of one pass of the sampler; ‖·‖ is the RMS.

    "paper": s. "push": s / (EMA‖δ‖ + 0.001) as in adaptive guidance ("When guidance breaks"): the push has about the
    size s in every step. "cfg": s / EMA(‖δ‖ / ‖CFG's push‖): the push is about s times as large as CFG's own. The
    quotient counts as 0.002 at least. It is the same whatever the model predicts: noise, a velocity or a picture.

    In unit cfg a step without CFG has nothing to be relative to. It goes by the steps with CFG before it in the pass;
    where there is none, the scale is 0.1 s in unit push. `without_cfg` counts those steps, over all passes. A step in
    which CFG pushes an image next to nowhere pushes it s times as far, and its quotient is in no average.
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.without_cfg = 0
        # Whether in each step with CFG so far it pushed every image next to nowhere; on the device. None: no such step.
        self.only_faint: Tensor | None = None
        self.begin_pass()

    def begin_pass(self) -> None:
        """A pass of the sampler begins, whose averages are its own."""
        self._push = AdaptiveScale()
        # Of each image; inf before the first step that counts.
        self._ratio: Tensor | None = None

    def __call__(self, scale: float, delta: Tensor, cfg: Tensor | None) -> float | Tensor:
        """The factor of this step: a number, or of each image, (images, 1, …), in delta's dtype.

        Args:
            scale: s, as the schedule has it in this step.
            delta: δ, (images, …), any floating dtype, a difference of noise or velocity predictions.
            cfg: CFG's own push (asag.guidance.cfg_push), shaped as delta and in the same space; None in a step without
                CFG. It counts in unit cfg alone.
        """
        if self.unit == "paper":
            return scale
        if self.unit == "push":
            return self._push(scale, delta)
        before = self._ratio
        if before is not None and before.shape[0] != delta.shape[0]:
            before = None
        if cfg is None:
            push = self._push(WITHOUT_CFG * scale, delta)
            if before is None:
                self.without_cfg += 1
                return push
            return torch.where(before.isinf(), push, scale / before).to(delta.dtype)
        now = (rms(delta) / rms(cfg).clamp_min(1e-12)).clamp_min(FLOOR)
        before = torch.full_like(now, math.inf) if before is None else before
        average = torch.where(before.isinf(), now, MOMENTUM * before + (1 - MOMENTUM) * now)
        # Choices on the device: to read a number would make the host wait for it. NaN is in no average, either.
        is_faint = ~(now <= FAINT)
        self._ratio = torch.where(is_faint, before, average)
        self.only_faint = is_faint.all() if self.only_faint is None else self.only_faint & is_faint.all()
        return (scale / torch.where(is_faint, now, average)).to(delta.dtype)
