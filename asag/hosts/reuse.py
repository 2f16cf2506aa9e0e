"""Whether the perturbed rows of a WebUI's generation come out of the host's own calls of its model; and if not, why.

A branch inside the host's call (asag.branch) is exact as long as whatever else is at work in the model treats its rows
one by one. Where it fails, the step and all after it take a whole extra pass; where code of others is at work in
the model, the first step of a pass takes both and compares. That is a trial inside the host's own pass, so it is made
only beside code that is known to keep nothing between calls (asag.hosts.other_code). Beside any other all steps take a
whole extra pass.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from asag.hosts.other_code import hooks_of, is_stateless, name_of
from asag.kernel_choice import DeviceLost
from asag.random_state import RandomState

logger = logging.getLogger(__name__)

# How far the two may lie apart, of the prediction: kernels round differently for another number of rows.
AGREEMENT = {torch.float16: 1e-2, torch.bfloat16: 4e-2}
FLOAT32_AGREEMENT = 1e-3


class Reuse:
    """Prefix reuse in one generation. `shared` and `whole` count the guided steps of either kind; `dtype` is that in
    which the model computes; `counting` holds what hooks into the network and may count its calls. `order` and
    `differed` are what `find` knows: which calls were asked for again in which order, and whether later ones differed.
    """

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self.reason = self.first_reason = ""
        self.shared = self.whole = 0
        self.trusted = False
        self.looked_at: nn.Module | None = None
        self.hooked = False
        self.counting: list[Any] = []
        self.order: dict[Hashable, int] = {}
        self.differed: Tensor | None = None
        self.dtype = torch.float32

    @property
    def on(self) -> bool:
        return self.wanted and not self.reason

    def begin_pass(self) -> None:
        """A pass of the sampler begins: other sizes, perhaps another model."""
        self.reason, self.trusted, self.looked_at = "", False, None
        self.order.clear()

    def look_at(self, network: nn.Module, around: Iterable[nn.Module] = ()) -> bool:
        """Whether code of others hooks into the network, or into the modules around it; looked at once a pass: it
        has hundreds of modules. A refiner brings another one."""
        if self.looked_at is not network:
            hooks = hooks_of(network, around)
            self.looked_at, self.trusted, self.hooked = network, False, bool(hooks)
            self.order.clear()
            self.counting = self.distrust(hooks)
        return self.hooked

    def distrust(self, functions: Iterable[Any]) -> list[Any]:
        """Those of the functions that may count calls of the model; beside any of them steps take whole passes."""
        unknown = [each for each in functions if not is_stateless(each)]
        if unknown:
            names = ", ".join(sorted({name_of(each) for each in unknown}))
            self.give_up(f"an extension may count the model's calls ({names})")
        return unknown

    def give_up(self, reason: str) -> None:
        """Take whole passes from here on, until the next pass of the sampler."""
        if not self.reason and self.wanted:
            logger.warning("ASAG takes a whole extra pass: %s", reason)
        self.reason = reason
        self.first_reason = self.first_reason or reason

    def call(
        self,
        plain: Callable[[], Tensor],
        branched: Callable[[], tuple[Tensor, Tensor]],
        random_state: RandomState,
        uncertain: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """One call of the model: its own rows, and the perturbed ones that branched off, if they did.

        `plain` and `branched` run the model. Where it is `uncertain` that rows are independent, the first pass's own
        come from a run without a branch, and are compared.
        """
        if not uncertain or self.trusted:
            found = self._tried(branched)
            if found is not None:
                return found
            random_state.restore()
            return plain(), None
        expected = plain()
        with random_state.again():
            found = self._tried(branched)
        return expected, found[1] if found is not None and self._agree(found[0], expected) else None

    def _tried(self, branched: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor] | None:
        """What `branched` gives; None if it fails. The next pass has to run outside of `except`, where the error would
        still hold what the failed one had computed: it may be that memory was short."""
        try:
            return branched()
        except DeviceLost:  # the model can't run again
            raise
        except Exception as error:
            self.give_up(f"{type(error).__name__}: {error}".splitlines()[0])
            return None

    def predict(self, shared: Tensor | None, whole: Callable[[], Tensor], uncertain: bool) -> Tensor:
        """The perturbed prediction: the one that branched off if there is one, checked once where it is `uncertain`."""
        if shared is not None and uncertain and not self.trusted:
            expected = whole()
            self.trusted = self._agree(shared, expected)
            if not self.trusted:
                shared, whole = None, lambda: expected
        if shared is None:
            self.whole += 1
            return whole()
        self.shared += 1
        return shared

    def find(self, known: Sequence[Sequence[Tensor]], asked: Sequence[Tensor], place: Hashable, uncertain: bool) -> int:
        """Which of the `known` calls of the model is asked for again; -1 where none has these very tensors.

        To compare numbers makes the host wait for the device. What the host does between its rows and the model
        doesn't change from step to step: where nothing is `uncertain`, numbers are compared the first time in a pass
        that a call of these shapes is asked for at this `place` in a step. After that they are compared on the device,
        and `differed` keeps the result.
        """
        key = place, tuple(each.shape for call in known for each in call), tuple(each.shape for each in asked)
        if key in self.order and not uncertain:
            index = self.order[key]
            for one, other in zip(known[index], asked, strict=True):
                different = (one != other).any()
                self.differed = different if self.differed is None else self.differed | different.to(self.differed)
            return index
        for index, call in enumerate(known):
            pairs = zip(call, asked, strict=True)
            if all(one.shape == other.shape and torch.equal(one, other) for one, other in pairs):
                self.order[key] = index
                return index
        return -1

    def _agree(self, out: Tensor, expected: Tensor) -> bool:
        bound = AGREEMENT.get(self.dtype, FLOAT32_AGREEMENT)
        distance = (out - expected).norm()
        agree = bool(distance <= bound * expected.norm())
        # NaN says nothing of the rows: the next step compares again.
        if not agree and math.isfinite(distance):
            self.give_up("shared work gave another result, perhaps through another extension")
        return agree

    def comment(self, again: int = 0) -> str | None:
        """The note for the user: that it took longer than it should, and why. `again`: how many guided steps took no
        pass at all, but used the last δ again."""
        # Without a reason numbers couldn't be compared, which asag.finite tells.
        if not self.wanted or not self.whole or not self.first_reason:
            return None
        steps = f"{self.whole} of {self.whole + self.shared + again} guided steps"
        return f"ASAG took a whole extra pass in {steps}: {self.first_reason}"
