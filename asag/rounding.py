"""Whether a push is lost in the rounding of half precision; in how many steps, is known at the end.

δ is the difference of two predictions that are nearly alike, so the rounding of both stays in it. In the small models
that rounding has 0.8 to 1.1 times the size of the prediction times the dtype's epsilon (research/precision). So of a δ
twice as large about half is rounding.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# By the dtype of the model: what is finer.
FINER = {torch.float16: "float32", torch.bfloat16: "float16 or float32"}
# Times the prediction and the dtype's epsilon: a smaller δ is mostly rounding.
LEAST = 2.0
LOST = (
    "ASAG's push was hardly larger than the rounding of %s in %d of %d guided steps, so much of it is noise; weaken "
    "more blocks, or run the model in %s"
)


class Rounding:
    """The pushes of one run beside the rounding of the model. In a step nothing is read, for which the host would wait
    for the device; `message` and `log` read it."""

    def __init__(self) -> None:
        self._lost: list[Tensor] = []
        self._dtype = torch.float32

    def add(self, delta: Tensor, prediction: Tensor, dtype: torch.dtype) -> None:
        """A step's δ and the prediction whose rounding is in it, both (images, …) in the same space; `dtype` is that
        in which the model computes. A δ of 0 isn't lost: another note tells it."""
        if dtype not in FINER:
            return
        size, whole = _norm(delta), _norm(prediction)
        self._lost.append(((size > 0) & (size < LEAST * torch.finfo(dtype).eps * whole)).any())
        self._dtype = dtype

    def message(self) -> str:
        """In how many steps the push of an image was lost, a sentence for the user; empty where that is less than half
        of the steps."""
        lost = sum(map(bool, self._lost))
        if not lost or 2 * lost < len(self._lost):
            return ""
        return LOST % (str(self._dtype).removeprefix("torch."), lost, len(self._lost), FINER[self._dtype])

    def log(self) -> None:
        """Have the log say so, and begin anew."""
        message = self.message()
        self._lost.clear()
        if message:
            logger.warning(message)


def _norm(values: Tensor) -> Tensor:
    """(images,) of (images, …), any floating dtype; in float32 at least."""
    wide = torch.promote_types(values.dtype, torch.float32)
    size: Tensor = torch.linalg.vector_norm(values.detach().flatten(1), dim=1, dtype=wide)
    return size
