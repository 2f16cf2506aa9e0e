"""One denoiser step of Forge and its relatives: what the model was given, recorded, and given again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from asag.branch import RowBranch
from asag.hosts.forge_rows import RowLists, cond_rows, has_uncond
from asag.hosts.kept_state import KeptState
from asag.hosts.other_code import functions_in, not_the_hosts
from asag.hosts.reuse import Reuse
from asag.models.base import AttentionLayer, Family, TokenGrid
from asag.models.host_attention import OVERRIDE
from asag.operators import Operator
from asag.perturb import branching, forward_replaced, perturbed, slice_rows
from asag.random_state import RandomState

Predict = Callable[[list[dict[str, Any]]], Tensor]

# By these in transformer_options extensions take part in what the model does.
EXTENSION_OPTIONS = (
    *("patches", "patches_replace", "block_modifiers", "block_inner_modifiers", "group_norm_wrapper"),
    OVERRIDE,
)

# How far apart, of the prediction, the same arithmetic on the same numbers may come out.
SAME = 1e-5


class Mismatch(Exception):
    """The second pass asks the model for something else than the first pass did."""


class Skipped(Exception):
    """The model ran without the layers that are to be weakened: it used again what they gave in an earlier step."""


@dataclass
class ForgeCall:
    """One call of the model in the host's own pass, which of its rows are conditional, what was remembered then, what
    the model gave for those rows, and, where they branched off, what it gave for them perturbed.

    What it was given is copied: a model may write to it (Krea 2 in Neo since September 2026: TextFusionBlock).
    """

    x: Tensor
    timestep: Tensor
    others: dict[str, Any]
    cond_rows: slice
    random_state: RandomState
    memory: KeptState
    own: Tensor | None = None
    branched: Tensor | None = None

    def given(self) -> dict[str, Any]:
        """What the model is given beside x and timestep, copied."""
        return _copied(self.others)


class SeenStep:
    """One denoiser step that is guided, which the sampler gave `x`; without a pass of its own, by the last δ. `ran`:
    whether the model did what the guidance needs. `cfg` is for CFG's own push, (images, channels, …)."""

    def __init__(self, network: nn.Module, x: Tensor, scale: float, cfg_scale: float) -> None:
        self.x, self.scale, self.ran = x, scale, True
        self.cfg_scale, self.uncond_ran = cfg_scale, False
        self.cfg: Tensor | None = None
        self.guard: Callable[[], AbstractContextManager[None]] = nullcontext
        self._undo = ExitStack()
        self._undo.callback(network.register_forward_pre_hook(self._see, with_kwargs=True).remove)

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with self.guard():
            self.uncond_ran = self.uncond_ran or has_uncond(_arguments(args, kwargs)[2])

    @property
    def has_cfg(self) -> bool:
        """Whether classifier-free guidance changes this step: the host may leave its rows out, or run them at scale 1,
        which samplers of CFG++ want."""
        return self.uncond_ran and not math.isclose(self.cfg_scale, 1.0)

    def is_of(self, x: Tensor, model_options: dict[str, Any]) -> bool:
        """Whether a pass on x is the step's own. A conditioning modifier may make one of its own before: reference
        units do, on the reference (extensions-builtin/forge_preprocessor_reference), with every post-CFG function."""
        if not model_options.get("conditioning_modifiers"):
            return True
        return x is self.x or (x.shape == self.x.shape and torch.equal(x, self.x))

    def remove(self) -> None:
        """Take everything out of the model."""
        self._undo.close()


class ForgeStep(SeenStep):
    """Records what the model is given in the host's own pass; predicts its conditional rows perturbed.

    They branch off inside the host's calls of the model as long as `reuse` is on. The host itself makes a second pass,
    on conditionings alone: what it does between its conditionings and the model (areas, masks, tiles, wrappers of
    other extensions) it does again. In the model's place comes what branched off; or the model runs on the first
    pass's very inputs for those rows: text padded to the length of the negative prompt's and ControlNet's residuals
    stay what they were, and ControlNet doesn't run again.
    """

    def __init__(
        self,
        network: nn.Module,
        x: Tensor,
        scale: float,
        layers: Sequence[AttentionLayer],
        family: Family,
        operator: Operator,
        reuse: Reuse,
        cfg_scale: float,
    ) -> None:
        # Looked for before there is a hook of our own.
        self.has_other_code, self.has_wrapper = reuse.look_at(network), False
        super().__init__(network, x, scale, cfg_scale)
        self.network = network
        self.layers, self.family, self.operator = layers, family, operator
        self.reuse = reuse
        self.calls: list[ForgeCall] = []
        self.entered: ForgeCall | None = None
        self.ran = False
        with ExitStack() as failing:
            failing.callback(self.remove)
            self._undo.callback(network.register_forward_pre_hook(self._before_call, with_kwargs=True).remove)
            self._undo.callback(network.register_forward_hook(self._record_output, with_kwargs=True).remove)
            if reuse.on:
                self._undo.enter_context(forward_replaced(network, self._sharing(network.forward)))
            failing.pop_all()

    def _before_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with self.guard():
            self._record(args, kwargs)

    def _record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x, timestep, others = _arguments(args, kwargs)
        rows, self.entered, self.ran = cond_rows(x, others), None, True
        if rows is not None:
            options = others["transformer_options"]
            patches = not_the_hosts(functions_in([options.get(name) for name in EXTENSION_OPTIONS]))
            self.has_other_code = self.has_other_code or bool(patches)
            memory = KeptState([*self.reuse.counting, *self.reuse.distrust(patches)])
            self.entered = ForgeCall(x.clone(), timestep.clone(), _copied(others), rows, RandomState(x.device), memory)
            self.calls.append(self.entered)

    def _record_output(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        with self.guard():
            x, _, others = _arguments(args, kwargs)
            if cond_rows(x, others) is not None:
                self.calls[-1].own = output[self.calls[-1].cond_rows]

    def _sharing(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            call, self.entered = self.entered, None
            if call is None or not self.reuse.on:
                return original(*args, **kwargs)
            options = call.others["transformer_options"]
            self.reuse.dtype = call.x.dtype

            def plain() -> Tensor:
                return original(call.x.clone(), call.timestep, **call.given())

            def branched() -> tuple[Tensor, Tensor]:
                with self._branching(call, options) as branch:
                    return branch.split(plain())

            own, call.branched = self.reuse.call(plain, branched, call.random_state, self.has_other_code)
            return own

        return forward

    def _branching(self, call: ForgeCall, options: dict[str, Any]) -> AbstractContextManager[RowBranch]:
        token_grid, total = TokenGrid(), call.x.shape[0]
        token_grid.enter(call.x, call.others.get("context"))
        tell = RowLists(options, total).tell
        return branching(self.network, self.layers, self.family, self.operator, token_grid, call.cond_rows, total, tell)

    def predict(self, predict: Predict, conds: list[dict[str, Any]]) -> Tensor:
        """The perturbed prediction, (images, channels, …), combined over `conds` as the host combines them; raises
        Skipped.

        `predict` is the host's own pass on conditionings alone. Where its calls can't be matched with the recorded
        ones it runs as it would for anyone, ControlNet included.
        """
        without_control = [{name: value for name, value in cond.items() if name != "control"} for cond in conds]

        def branched() -> Tensor | None:
            if not self.reuse.on or any(call.branched is None for call in self.calls):
                return None
            try:
                with forward_replaced(self.network, self._taken("branched")):
                    return predict(without_control)
            except Mismatch:
                self.reuse.give_up("the model got other inputs than before")
                return None

        def whole() -> Tensor:
            for given, recorded in ((without_control, list(self.calls)), (conds, None)):
                token_grid = TokenGrid()
                played = self._played(self.network.forward, token_grid, recorded)
                try:
                    # The perturbed layers' forwards lie inside the model's: the order doesn't matter.
                    layers = perturbed(self.layers, self.family, self.operator, token_grid)
                    with layers, self._layers_run(), forward_replaced(self.network, played):
                        return predict(given)
                except Mismatch:
                    continue
            raise AssertionError("the pass that isn't matched with recorded calls can't mismatch")

        return self.reuse.predict(branched(), whole, self.has_other_code)

    @contextmanager
    def _layers_run(self) -> Iterator[None]:
        """Raises Skipped at the end if none of the weakened layers ran meanwhile."""
        ran: list[nn.Module] = []
        with ExitStack() as stack:
            for layer in self.layers:
                hook = layer.module.register_forward_pre_hook(lambda module, args: ran.append(module))
                stack.callback(hook.remove)
            yield
        if not ran:
            raise Skipped

    def repeats(self, predict: Predict, conds: list[dict[str, Any]], expected: Tensor) -> bool:
        """Whether `predict`, with the model's own outputs in its place, gives what the host's own pass gave."""
        without_control = [{name: value for name, value in cond.items() if name != "control"} for cond in conds]
        try:
            with forward_replaced(self.network, self._taken("own")):
                again = predict(without_control)
        except Mismatch:
            return False
        return bool((again - expected).norm() <= SAME * expected.norm())

    def _take(self, recorded: list[ForgeCall], x: Tensor, timestep: Tensor) -> ForgeCall:
        """Take the first recorded call whose conditional rows are these; raises Mismatch when there is none."""
        known = [(call.x[call.cond_rows], call.timestep[call.cond_rows]) for call in recorded]
        place = len(self.calls) - len(recorded)
        index = self.reuse.find(known, (x, timestep), place, self.has_other_code or self.has_wrapper)
        if index < 0:
            raise Mismatch
        return recorded.pop(index)

    def _taken(self, name: str) -> Callable[..., Tensor]:
        """A forward that gives what the recorded calls have under that name."""
        recorded = list(self.calls)

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            x, timestep, _ = _arguments(args, kwargs)
            output: Tensor = getattr(self._take(recorded, x, timestep), name)
            return output

        return forward

    def _played(self, original: Callable[..., Tensor], token_grid: TokenGrid, recorded: list[ForgeCall] | None) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            x, timestep, others = _arguments(args, kwargs)
            if recorded is None:
                token_grid.enter(x, others.get("context"))
                return original(x, timestep, **others)
            call = self._take(recorded, x, timestep)
            with call.random_state.again(), call.memory.again():
                if call.memory.functions:
                    # What may go by the number of rows gets all that the host gave it.
                    token_grid.enter(call.x, call.others.get("context"))
                    return original(call.x.clone(), call.timestep, **call.given())[call.cond_rows]
                given = slice_rows(call.given(), call.cond_rows, call.x.shape[0])
                given["transformer_options"] = others["transformer_options"]
                token_grid.enter(x, given.get("context"))
                return original(x, timestep, **given)

        return forward


def _copied(others: dict[str, Any]) -> dict[str, Any]:
    """The same with tensors copied, and the lists of residuals, off which the model pops them (backend/nn/unet.py:
    apply_control)."""
    copied = {name: each.clone() if isinstance(each, Tensor) else each for name, each in others.items()}
    control = others.get("control")
    if isinstance(control, dict):
        copied["control"] = {name: list(each) if isinstance(each, list) else each for name, each in control.items()}
    return copied


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """x, timestep and the rest by name: apply_model (backend/modules/k_model.py) gives the first two by position."""
    if len(args) != 2:
        raise RuntimeError(f"the host gave its model {len(args)} positional arguments; allowed: x and timestep")
    return args[0], args[1], dict(kwargs)
