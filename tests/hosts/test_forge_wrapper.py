"""Functions of others around Forge's model (`model_function_wrapper`): those that remember what they see.

On the double of the host in test_forge.py, whose pass is taken to pieces here as the host's own
(backend/sampling/sampling_function.py: calc_cond_uncond_batch): through the wrapper, in one call or one for each kind.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.hosts import test_forge
from tests.hosts.test_forge import guided, host, plain  # noqa: F401  (host is a fixture)


def host_pass(model: Any, cond: Any, uncond: Any, x: Tensor, timestep: Tensor, model_options: Any) -> Any:
    """The double of calc_cond_uncond_batch for one conditioning of each kind: text of one length in one call."""
    kinds = [(1, each) for each in uncond or []] + [(0, each) for each in cond]
    alike = len({each["text"].shape[1] for _, each in kinds}) == 1
    found = {}
    for group in [kinds] if alike else [[each] for each in kinds]:
        options = {**model_options["transformer_options"], "cond_or_uncond": [kind for kind, _ in group]}
        rows, times = torch.cat([x] * len(group)), torch.cat([timestep] * len(group))
        texts = torch.cat([each["text"].expand(x.shape[0], -1, -1) for _, each in group])
        c = {"context": texts, "transformer_options": options}
        wrapper = model_options.get("model_function_wrapper")
        if wrapper is None:
            out = model.diffusion_model(rows, times, **c)
        else:
            out = wrapper(model.diffusion_model, {"input": rows, "timestep": times, "c": c})
        found |= {kind: chunk.clone() for (kind, _), chunk in zip(group, out.chunk(len(group)), strict=True)}
    return found[0], found.get(1, torch.zeros_like(x))


class Forecaster:
    """The double of Neo's Spectrum (lib_spectrum/forecaster.py): every other step comes from a history, which it keeps
    by kinds of rows and shape: the last prediction and what it had changed by."""

    def __init__(self) -> None:
        self.history: dict[Any, list[Tensor]] = {}
        self.steps, self.model_calls = -1, 0

    def __call__(self, model: Any, given: dict[str, Any]) -> Tensor:
        key = (tuple(given["c"]["transformer_options"]["cond_or_uncond"]), tuple(given["input"].shape))
        history = self.history.setdefault(key, [])
        if self.steps % 2 == 0 or not history:
            self.model_calls += 1
            history.append(model(given["input"], given["timestep"], **given["c"]).clone())
            return history[-1]
        return 2 * history[-1] - history[-2] if len(history) > 1 else history[-1]


class Scaling:
    """The double of an extension that changes what goes into the model and what comes out, and counts its calls."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, model: Any, given: dict[str, Any]) -> Tensor:
        self.calls.append(len(given["input"]))
        return 1.5 * model(0.5 * given["input"], given["timestep"], **given["c"])


@pytest.fixture
def wrapped(host: Any, monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: F811
    """The host, with that pass; `wrapped.use(wrapper)` puts a wrapper around its model."""
    monkeypatch.setattr(test_forge, "calc_cond_uncond_batch", host_pass)
    monkeypatch.setattr(sys.modules["backend.sampling.sampling_function"], "calc_cond_uncond_batch", host_pass)

    def use(wrapper: Any) -> None:
        host.unet.model_options.pop("model_function_wrapper", None)
        if wrapper is not None:
            host.unet.model_options["model_function_wrapper"] = wrapper

    host.use = use
    return host


def sampled(wrapped: Any, wrapper: Any, settings: dict[str, Any] | None) -> Tensor:
    """What a request of four steps on latents that change with the step gives, (steps, images, …)."""
    wrapped.use(wrapper)
    wrapped.comments.clear()
    first, step = wrapped.x, wrapped.step

    def counted() -> Tensor:
        wrapped.x = first * (1 - 0.1 * wrapped.denoiser.step)
        if isinstance(wrapper, Forecaster):
            wrapper.steps += 1
        return step()

    wrapped.step = counted
    try:
        return plain(wrapped) if settings is None else guided(wrapped, **settings)
    finally:
        wrapped.x, wrapped.step = first, step


@pytest.mark.parametrize("reuse", [True, False])
def test_steps_in_which_the_model_uses_its_blocks_again_are_left_out_and_told(wrapped: Any, reuse: bool) -> None:
    """The double of a cache of blocks (First Block Cache): the network runs, and in every other step not its blocks."""
    network = wrapped.model.diffusion_model
    block, own = network.middle_block[1], network.forward

    def cached(x: Tensor, timestep: Tensor, context: Any = None, transformer_options: Any = None) -> Tensor:
        if wrapped.denoiser.step % 2 == 0:
            return own(x, timestep, context=context, transformer_options=transformer_options)
        return x + 0.5

    without = {}
    for name, forward in (("cached", cached), ("plain", own)):
        network.forward = forward
        without[name] = sampled(wrapped, None, None)
        if name == "cached":
            both = sampled(wrapped, None, {"reuse": reuse, "scale": 2.0})
            told = [comment for comment in wrapped.comments if "left out" in comment]
    del network.forward
    torch.testing.assert_close(both[1::2], without["cached"][1::2], rtol=0, atol=0)
    assert float((both[::2] - without["cached"][::2]).abs().max()) > 1e-3
    assert told == ["ASAG left out 2 steps that another extension made without the weakened blocks, as caches do"]
    assert not block._forward_pre_hooks


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("lengths", [(3, 3), (3, 6), (3, None)], ids=["one call", "two calls", "CFG 1"])
def test_a_history_of_predictions_has_unguided_ones_alone(wrapped: Any, lengths: Any, reuse: bool) -> None:
    length = lengths[1]
    wrapped.unconds = [] if length is None else [{"text": torch.full((1, length, 4), -0.2)}]
    alone, seen = Forecaster(), Forecaster()
    without = sampled(wrapped, alone, None)
    both = sampled(wrapped, seen, {"reuse": reuse, "scale": 2.0})
    told = [comment for comment in wrapped.comments if "left out" in comment]
    assert seen.history.keys() == alone.history.keys()
    for key, history in alone.history.items():
        assert all(torch.equal(*pair) for pair in zip(seen.history[key], history, strict=True))
    assert seen.model_calls == alone.model_calls
    # Steps that were forecast are as they are without ASAG, and are told; the others are guided as without the wrapper.
    torch.testing.assert_close(both[1::2], without[1::2], rtol=0, atol=0)
    assert told == ["ASAG left out 2 steps that tests.hosts.test_forge_wrapper made without running the model"]
    bare = sampled(wrapped, None, {"reuse": reuse, "scale": 2.0})
    torch.testing.assert_close(both[::2], bare[::2])
    assert float((both[::2] - without[::2]).abs().max()) > 1e-3


@pytest.mark.parametrize("reuse", [True, False])
def test_a_wrapper_that_changes_the_models_rows_is_used_and_doesnt_notice(wrapped: Any, reuse: bool) -> None:
    alone, seen = Scaling(), Scaling()
    sampled(wrapped, alone, None)
    both = sampled(wrapped, seen, {"reuse": reuse, "scale": 2.0})
    assert not any("left out" in comment for comment in wrapped.comments)
    assert seen.calls == alone.calls
    # The same arithmetic in the model's own place.
    network = wrapped.model.diffusion_model
    forward = network.forward
    network.forward = lambda x, *args, **kwargs: 1.5 * forward(0.5 * x, *args, **kwargs)
    try:
        expected = sampled(wrapped, None, {"reuse": False, "scale": 2.0})
    finally:
        del network.forward
    torch.testing.assert_close(both, expected)
