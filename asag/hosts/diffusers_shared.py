"""What the batches of a modular pipeline share: the perturbed prediction is made in the call of the conditional batch.

A modular loop calls the denoiser for one batch after another. The perturbed batch is the conditional one again, so its
rows branch off inside the conditional batch's call (see asag.branch), and its own call only hands out what was made.
It does so where it is given the very tensors of that call; otherwise it is a whole pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from asag.hosts.diffusers_call import argument, plain_options, token_grid_of, with_rows
from asag.hosts.reuse import Reuse
from asag.models.base import AttentionLayer, Family, Forward
from asag.operators import Operator
from asag.perturb import branching, perturbed

COMPILED = "torch.compile made the model, and ASAG can't share work in it"
OPTIONS = "cross_attention_kwargs or joint_attention_kwargs hold more than numbers"
OTHER_INPUTS = "the weakened batch gets other inputs than the conditional one (ControlNet makes such)"


@dataclass(frozen=True)
class Perturbation:
    """Where and how a denoiser is perturbed. `model` is `denoiser`, or the module that torch.compile was given."""

    denoiser: nn.Module
    model: nn.Module
    family: Family
    layers: Sequence[AttentionLayer]
    operator: Operator


class SharedWork:
    """The perturbed prediction of one step, from the conditional batch's call to the perturbed batch's."""

    def __init__(self, wanted: bool) -> None:
        self.reuse = Reuse(wanted)
        self._made: tuple[_Given, Any] | None = None

    def begin_pass(self) -> None:
        """A picture begins."""
        self.reuse.begin_pass()

    def forget(self) -> None:
        """A step begins: what another one made isn't used."""
        self._made = None

    def conditional(self, place: Perturbation) -> Forward:
        """A forward for the conditional batch that also makes the perturbed prediction, where it can."""
        forward: Forward = place.denoiser.forward
        if place.model is not place.denoiser:
            self.reuse.give_up(COMPILED)
            return forward

        def run(*args: Any, **kwargs: Any) -> Any:
            if not plain_options(kwargs):
                self.reuse.give_up(OPTIONS)
                return forward(*args, **kwargs)
            given = _Given(place.model, args, kwargs)
            total = argument(args, kwargs, 0, "sample", "hidden_states").shape[0]
            where = place.layers, place.family, place.operator, token_grid_of(args, kwargs)
            with branching(place.model, *where, slice(0, total), total) as branch:
                output = forward(*args, **kwargs)
            rows, weakened = branch.split(output[0])
            self._made = given, with_rows(output, weakened)
            return with_rows(output, rows)

        return run

    def weakened(self, place: Perturbation) -> Forward:
        """A forward for the perturbed batch: what the conditional one's call made, or a whole pass."""
        forward = place.model.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            made, self._made = self._made, None
            if made is not None:
                given, output = made
                if given.is_again(place.model, args, kwargs):
                    return output
                self.reuse.give_up(OTHER_INPUTS)
            with perturbed(place.layers, place.family, place.operator, token_grid_of(args, kwargs)):
                return forward(*args, **kwargs)

        return run


class _Given:
    """What a model was called with. Tensors are held, so that no other one gets their memory."""

    def __init__(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.values = [model, *_values(args), *_values(kwargs)]
        self.versions = _versions(self.values)

    def is_again(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> bool:
        """Whether a model is called with the same once more, and nothing wrote to the tensors in between."""
        values = [model, *_values(args), *_values(kwargs)]
        if len(values) != len(self.values) or not all(map(_is_same, self.values, values)):
            return False
        return _versions(values) == self.versions


def _values(given: Any) -> list[Any]:
    """What nested dicts, lists and tuples hold, in order, with their lengths. The model may take things out of them."""
    if isinstance(given, dict):
        return [len(given), *(value for item in given.items() for value in _values(item))]
    if isinstance(given, (list, tuple)):
        return [len(given), *(value for each in given for value in _values(each))]
    return [given]


def _versions(values: Sequence[Any]) -> list[int]:
    tensors = [each for each in values if isinstance(each, Tensor)]
    return [0 if each.is_inference() else each._version for each in tensors]


def _is_same(one: Any, other: Any) -> bool:
    """Of tensors, whether they are one or views of the same numbers (a loop expands its timestep for each batch): to
    compare numbers makes the host wait for the device."""
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and bool(one.is_set_to(other))
    return isinstance(one, (bool, int, float, str)) and type(one) is type(other) and bool(one == other)
