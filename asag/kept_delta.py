"""δ of one model call, used again in those that follow: the setting `every`. Knows tensors only.

What is kept is free of σ: δ of the noise, or of the velocity where a flow is integrated. That is the derivative along
which samplers step, so it changes little from one call to the next, whereas the same change of the picture is σ times
that. With x = x₀ + σ ε, and with x = (1 - σ) x₀ + σ ε in flows, whose velocity is v = ε - x₀, x being given:

    δ of the picture x₀      σ δ
    δ of the noise, a flow's velocity      δ
    δ of v = √ᾱ ε - √(1-ᾱ) x₀, whose σ is √((1-ᾱ)/ᾱ)      δ / √ᾱ

but for a sign, which keeping and using again both leave out. The factor is the `level` below. Whatever a model
predicts, the picture is so pushed alike: by σ over the σ of then times what it was pushed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


class KeptDelta:
    """Which guided calls of the model compute δ, every n-th one, and the δ for those between.

    Calls are counted, not steps: hosts don't say which calls belong to one step. A sampler of two calls a step (Heun,
    DPM++ SDE) so computes δ at the step's own σ at n = 2 and uses it at its second σ, which is never further than a
    step away. In all samplers but Restart σ falls from call to call: the last δ is the one of the nearest σ.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.reused = False
        self._free: Tensor | None = None
        self._like: tuple[Any, ...] = ()
        self._calls = 0

    def forget(self) -> None:
        """A pass of the sampler begins, or a call isn't guided: the next guided call computes δ."""
        self._free, self.reused = None, False

    def reuses(self, *like: Any) -> bool:
        """Whether the guided call that begins uses the last δ again. It computes its own when that isn't of a call
        `like` it: of another model, of other shapes."""
        self.reused = self._free is not None and self._like == like and self._calls < self.every
        if self.reused:
            self._calls += 1
        else:
            self._free, self._like, self._calls = None, like, 1
        return self.reused

    def keep(self, delta: Tensor, level: float | Tensor) -> Tensor:
        """Keep δ, (images, …), as computed where a free δ of 1 is one of `level`, a number or of each image; returns
        it as it is."""
        if self.every > 1:
            self._free = (delta.detach() / level).to(delta.dtype)
        return delta

    def again(self, level: float | Tensor) -> Tensor:
        """The kept δ where a free δ of 1 is one of `level`."""
        if self._free is None:
            raise RuntimeError("no δ was kept; allowed: a call for which `reuses` was true")
        return (self._free * level).to(self._free.dtype)
