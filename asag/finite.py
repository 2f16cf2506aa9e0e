"""A push that is no number, NaN or inf, is left out, image by image; in how many steps, is known at the end."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

LEFT_OUT = (
    "ASAG left out its push in %d of %d guided steps: it held NaN or inf (half precision can't hold large numbers; "
    "full precision may help)"
)


def is_finite(push: Tensor) -> Tensor:
    """Which images of (images, …), any floating dtype, hold neither NaN nor inf: (images, 1, …), bool.

    By the root of the sum of squares, and not the largest number: some devices lose NaN in a maximum.
    """
    wide = torch.promote_types(push.dtype, torch.float32)
    dimensions = tuple(range(1, push.ndim))
    size: Tensor = torch.linalg.vector_norm(push.detach(), dim=dimensions, keepdim=True, dtype=wide)
    return size < math.inf


class FinitePushes:
    """The pushes s δ of one run. What a model of half precision makes of weakened attention may be too large for it.

    In a step nothing is read, for which the host would wait for the device; `message` and `log` read it.
    """

    def __init__(self) -> None:
        # Of each step what is_finite says of its push.
        self._finite: list[Tensor] = []

    def __call__(self, push: Tensor) -> Tensor:
        """The push of a step, (images, …), with zeros for the images in which it holds NaN or inf: they go on
        unguided, and the others as they would alone."""
        finite = is_finite(push)
        self._finite.append(finite)
        return torch.where(finite, push, 0.0)

    def message(self) -> str:
        """In how many steps an image's push was left out, a sentence for the user; empty when all were numbers."""
        left_out = sum(not bool(each.all()) for each in self._finite)
        return LEFT_OUT % (left_out, len(self._finite)) if left_out else ""

    def log(self) -> None:
        """Have the log say so, and begin anew."""
        message = self.message()
        self._finite.clear()
        if message:
            logger.warning(message)
