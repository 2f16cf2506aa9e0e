"""One denoiser step of Forge and its relatives: what the model was given, recorded, and given again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from asag.hosts.random_state import RandomState
from asag.models.base import AttentionLayer, Family, Scene
from asag.operators import Operator
from asag.perturb import forward_replaced, perturbed, slice_rows

COND = 0

Predict = Callable[[list[dict[str, Any]]], Tensor]


class Mismatch(Exception):
    """The second pass asks the model for something else than the first pass did."""


@dataclass
class Call:
    """One call of the model in the host's own pass, and which of its rows are conditional."""

    x: Tensor
    timestep: Tensor
    others: dict[str, Any]
    cond_rows: slice
    random_state: RandomState


class Step:
    """Records what the model is given in the host's own pass; predicts its conditional rows once more.

    The host itself makes the second pass, on conditionings alone: what it does between its conditionings and the
    model (areas, masks, tiles, wrappers of other extensions) it does again. The model then gets the first pass's very
    inputs for those rows: text padded to the length of the negative prompt's and ControlNet's residuals stay what
    they were, and ControlNet doesn't run again.
    """

    def __init__(self, network: nn.Module, x: Tensor, scale: float, blocks: str) -> None:
        self.network = network
        self.x = x
        self.scale = scale
        self.blocks = blocks
        self.calls: list[Call] = []
        self._hook = network.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x, timestep, others = _arguments(args, kwargs)
        rows = _cond_rows(x, others)
        if rows is not None:
            # The model pops residuals off these lists (backend/nn/unet.py: apply_control).
            control = others.get("control")
            if isinstance(control, dict):
                lists = {name: list(each) if isinstance(each, list) else each for name, each in control.items()}
                others = {**others, "control": lists}
            self.calls.append(Call(x, timestep, others, rows, RandomState(x.device)))

    def is_of(self, x: Tensor, model_options: dict[str, Any]) -> bool:
        """Whether a pass on x is the step's own. A conditioning modifier may make one of its own before: reference
        units do, on the reference (extensions-builtin/forge_preprocessor_reference), with every post-CFG function."""
        if not model_options.get("conditioning_modifiers"):
            return True
        return x is self.x or (x.shape == self.x.shape and torch.equal(x, self.x))

    def remove(self) -> None:
        """Stop recording."""
        self._hook.remove()

    def predict(
        self,
        predict: Predict,
        conds: list[dict[str, Any]],
        layers: Sequence[AttentionLayer],
        family: Family,
        operator: Operator,
    ) -> Tensor:
        """The perturbed prediction, (images, channels, …), combined over `conds` as the host combines them.

        `predict` is the host's own pass on conditionings alone. Where its calls can't be matched with the recorded
        ones it runs as it would for anyone, ControlNet included.
        """
        without_control = [{name: value for name, value in cond.items() if name != "control"} for cond in conds]
        for given, recorded in ((without_control, list(self.calls)), (conds, None)):
            scene = Scene()
            played = self._played(self.network.forward, scene, recorded)
            try:
                # The perturbed layers' forwards lie inside the model's: the order doesn't matter.
                with perturbed(layers, family, operator, scene), forward_replaced(self.network, played):
                    return predict(given)
            except Mismatch:
                continue
        raise AssertionError("the pass that isn't matched with recorded calls can't mismatch")

    def _played(self, original: Callable[..., Tensor], scene: Scene, recorded: list[Call] | None) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            x, timestep, others = _arguments(args, kwargs)
            if recorded is None:
                scene.enter(x, others.get("context"))
                return original(x, timestep, **others)
            call = _take(recorded, x, timestep)
            given = slice_rows(call.others, call.cond_rows, call.x.shape[0])
            given["transformer_options"] = others["transformer_options"]
            scene.enter(x, given.get("context"))
            with call.random_state.again():
                return original(x, timestep, **given)

        return forward


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """x, timestep and the rest by name: apply_model (backend/modules/k_model.py) gives the first two by position."""
    if len(args) != 2:
        raise RuntimeError(f"the host gave its model {len(args)} positional arguments; allowed: x and timestep")
    return args[0], args[1], dict(kwargs)


def _cond_rows(x: Tensor, others: dict[str, Any]) -> slice | None:
    """The conditional rows of a call: contiguous, as the host batches conditionings; None when there are none."""
    kinds = (others.get("transformer_options") or {}).get("cond_or_uncond")
    if not kinds or COND not in kinds:
        return None
    size = x.shape[0] // len(kinds)
    first, count = kinds.index(COND), kinds.count(COND)
    if kinds[first : first + count] != [COND] * count:
        return None
    return slice(first * size, (first + count) * size)


def _take(recorded: list[Call], x: Tensor, timestep: Tensor) -> Call:
    """Take the first recorded call whose conditional rows are these; raises Mismatch when there is none."""
    for index, call in enumerate(recorded):
        rows = call.x[call.cond_rows]
        if rows.shape == x.shape and torch.equal(rows, x) and torch.equal(call.timestep[call.cond_rows], timestep):
            return recorded.pop(index)
    raise Mismatch
