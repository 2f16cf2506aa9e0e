"""One denoiser step of AUTOMATIC1111: what the model was given, recorded, and given again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from asag.branch import RowBranch
from asag.hosts.kept_state import KeptState
from asag.hosts.reuse import Reuse
from asag.models.base import AttentionLayer, Family, TokenGrid
from asag.operators import Operator
from asag.perturb import branching, forward_replaced, perturbed, slice_rows
from asag.random_state import RandomState


@dataclass
class SeenCall:
    """One call of `inner_model`: the rows and sigmas that it was given."""

    x: Tensor
    sigma: Tensor


@dataclass
class A1111Call(SeenCall):
    """Such a call, what was remembered then, how many rows are wanted perturbed (they come first), and, where they
    branched off, what the UNet was given and gave for them, call by call."""

    cond: Any
    random_state: RandomState
    memory: KeptState
    wanted: int
    branched: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class SeenStep:
    """What `inner_model` was given in one denoiser step: the rows of x_out in order, over one call or several."""

    def __init__(self, denoiser: Any, scale: float, cond_rows: int, images: int) -> None:
        self.denoiser = denoiser
        self.inner_model: Any = denoiser.inner_model
        self.scale, self.cond_rows, self.images = scale, cond_rows, images
        self.calls: list[Any] = []
        self.guard: Callable[[], AbstractContextManager[None]] = nullcontext
        self._undo = ExitStack()
        self._undo.callback(self.inner_model.register_forward_pre_hook(self._before_call, with_kwargs=True).remove)

    def _before_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with self.guard():
            self._record(module, args, kwargs)

    def _record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls.append(SeenCall(args[0], args[1]))

    def remove(self) -> None:
        """Take everything out of the model."""
        self._undo.close()

    @property
    def x(self) -> Tensor:
        """What the model was given, of all calls: (rows, channels, height, width)."""
        return torch.cat([call.x for call in self.calls])

    @property
    def recorded_rows(self) -> int:
        return sum(call.x.shape[0] for call in self.calls)


class A1111Step(SeenStep):
    """A step whose conditional rows are perturbed.

    `network` is the UNet inside `inner_model`. As long as `reuse` is on, the rows branch off inside its calls.
    """

    def __init__(
        self,
        denoiser: Any,
        scale: float,
        cond_rows: int,
        images: int,
        network: nn.Module,
        layers: Sequence[AttentionLayer],
        family: Family,
        operator: Operator,
        reuse: Reuse,
    ) -> None:
        # Looked for before there is a hook of our own.
        self.has_other_code = reuse.look_at(network, _around(denoiser.inner_model, network))
        super().__init__(denoiser, scale, cond_rows, images)
        self.calls: list[A1111Call] = []
        self.network, self.layers, self.family, self.operator = network, layers, family, operator
        self.reuse = reuse
        with ExitStack() as failing:
            failing.callback(self.remove)
            if reuse.on:
                self._undo.enter_context(forward_replaced(network, self._sharing(network.forward)))
            failing.pop_all()

    def _record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        wanted = max(0, min(args[0].shape[0], self.cond_rows - self.recorded_rows))
        then = RandomState(args[0].device), KeptState(self.reuse.counting)
        self.calls.append(A1111Call(args[0], args[1], kwargs["cond"], *then, wanted))

    def _sharing(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if not self.calls or not self.calls[-1].wanted or not self.reuse.on:
                return original(x, *args, **kwargs)
            call, self.reuse.dtype = self.calls[-1], x.dtype
            if x.shape[0] != call.x.shape[0]:
                self.reuse.give_up(f"the UNet was given {x.shape[0]} rows of {call.x.shape[0]}")
                return original(x, *args, **kwargs)
            rows = slice(0, call.wanted)

            def plain() -> Tensor:
                return original(x, *args, **kwargs)

            def branched() -> tuple[Tensor, Tensor]:
                with self._branching(x, rows) as branch:
                    return branch.split(plain())

            with self.guard():
                random_state = RandomState(x.device)
            own, copies = self.reuse.call(plain, branched, random_state, self.has_other_code)
            if copies is not None:
                call.branched.append((x[rows], copies))
            return own

        return forward

    def _branching(self, x: Tensor, rows: slice) -> AbstractContextManager[RowBranch]:
        token_grid = TokenGrid((x.shape[-2], x.shape[-1]))
        return branching(self.network, self.layers, self.family, self.operator, token_grid, rows, x.shape[0])

    def predict(self, whole_calls: bool) -> Tensor:
        """The conditional rows perturbed, in the host's own batches: (cond_rows, channels, height, width).

        With `whole_calls` a pass of its own is given all rows of such a batch, as the host gave them; so it is beside
        code that may go by their number.
        """
        whole_calls = whole_calls or bool(self.reuse.counting)

        def whole() -> Tensor:
            x = self.calls[0].x
            token_grid = TokenGrid((x.shape[-2], x.shape[-1]))
            with perturbed(self.layers, self.family, self.operator, token_grid):
                return self._again(whole_calls)

        return self.reuse.predict(self._branched(), whole, self.has_other_code)

    def _branched(self) -> Tensor | None:
        """The host's `inner_model` again, its UNet's part being what branched off; None where that can't be."""
        if not self.reuse.on:
            return None
        given = [each for call in self.calls for each in call.branched]
        taken = 0

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            nonlocal taken
            place, taken = taken, taken + 1
            if self.reuse.find([(seen,) for seen, _ in given[place:taken]], (x,), place, self.has_other_code) != 0:
                raise _OtherRows
            return given[place][1]

        try:
            with forward_replaced(self.network, forward):
                return self._again(whole_calls=False)
        except _OtherRows:
            self.reuse.give_up("the model got other inputs than before")
            return None

    def _again(self, whole_calls: bool) -> Tensor:
        out = []
        for call in self.calls:
            if not call.wanted:
                break
            total = call.x.shape[0]
            rows = slice(0, total if whole_calls else call.wanted)
            with call.random_state.again(), call.memory.again():
                predicted = self.inner_model(call.x[rows], call.sigma[rows], cond=slice_rows(call.cond, rows, total))
            out.append(predicted[: call.wanted])
        return torch.cat(out)


def _around(inner_model: nn.Module, network: nn.Module) -> list[nn.Module]:
    """The modules through which the host calls its UNet: k-diffusion's wrapper, the LatentDiffusion and its
    DiffusionWrapper."""
    model = getattr(inner_model, "inner_model", None)
    found = [inner_model, model, getattr(model, "model", None)]
    return [each for each in found if isinstance(each, nn.Module) and each is not network]


class _OtherRows(Exception):
    """The UNet isn't asked for what branched off."""
