"""A guided step beside code that counts the model's calls, in AUTOMATIC1111 and in Forge, on the UNet that they run.

Expected is what the UNet predicts for the conditional rows alone, with the text that the hook gave them in the host's
own pass, and with uniform attention in its middle block, written out here.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asag.hosts import a1111_step, forge_step
from asag.hosts.reuse import Reuse
from asag.models.ldm_unet import LdmUnet
from asag.operators import Sinkhorn
from asag.perturb import choose_layers
from tests.hosts.counting_hook import CountingHook
from tests.hosts.test_a1111_step import InnerModel
from tests.models.test_ldm_unet import SD15, build
from tests.support import snapshot
from tests.tiny_diffusers import normal

EXTRA = normal(1, 3, 24, seed=5)
WHOLE = "may count the model's calls (tests.hosts.counting_hook)"
COND, UNCOND = 0, 1


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return build(SD15)


@pytest.fixture
def hook(unet: nn.Module, request: pytest.FixtureRequest) -> Iterator[CountingHook]:
    images, cond_first = request.param
    counting = CountingHook(unet, images, EXTRA, cond_first)
    yield counting
    counting.remove()


def uniform(module: nn.Module) -> Any:
    """Self-attention in which each token attends to all alike."""
    return lambda x, **others: module.to_out(module.to_v(x).mean(dim=1, keepdim=True).expand_as(module.to_v(x)))


@torch.no_grad()
def expected(unet: nn.Module, x: Tensor, time: Tensor, text: Tensor, extra: bool, weakened: bool) -> Tensor:
    """The UNet's prediction without any hook: the extra text is the prompt's own."""
    layers = [module for name, module in unet.named_modules() if name.endswith(("attn1", "attn2"))]
    hooked = {layer: layer.__dict__.pop("forward") for layer in layers if "forward" in layer.__dict__}
    text = torch.cat([text, EXTRA.expand(text.shape[0], -1, -1)], dim=1) if extra else text
    middle = unet.middle_block[1].transformer_blocks[0].attn1
    try:
        if weakened:
            middle.forward = uniform(middle)
        return unet(x, time, context=text)
    finally:
        middle.__dict__.pop("forward", None)
        for layer, forward in hooked.items():
            layer.forward = forward


def assert_close(out: Tensor, wanted: Tensor) -> None:
    assert float((out - wanted).norm() / wanted.norm()) < 1e-5


@torch.no_grad()
def a1111(unet: nn.Module, hook: CountingHook, conds: int, batches: list[int], reuse: Reuse | None) -> Any:
    """A step of AUTOMATIC1111 in such batches: what went in, the host's own rows, and the perturbed ones."""
    model, rows = InnerModel(unet), sum(batches)
    x, text, sigma = normal(rows, 4, 16, 24, seed=1), normal(rows, 7, 24, seed=2), torch.linspace(1, 3, rows)
    hook.begin_step()
    step = None
    if reuse is not None:
        layers = choose_layers(unet, LdmUnet(), "mid")
        denoiser = SimpleNamespace(inner_model=model)
        rest = (unet, layers, LdmUnet(), Sinkhorn(cost="uniform"), reuse)
        step = a1111_step.A1111Step(denoiser, 1.5, conds, rows - conds, *rest)
    begin, out = 0, []
    for size in batches:
        some = slice(begin, begin + size)
        out.append(model(x[some], sigma[some], cond={"c_crossattn": [text[some]]}))
        begin += size
    if step is None:
        return x, text, sigma, torch.cat(out), None
    step.remove()
    return x, text, sigma, torch.cat(out), step.predict(whole_calls=False)


@pytest.mark.parametrize("wanted", [True, False], ids=["reuse", "whole"])
@pytest.mark.parametrize(
    ("hook", "conds", "batches", "extra"),
    [
        ((1, True), 1, [2], True),  # a pair
        ((1, True), 1, [1, 1], True),  # one after the other: the first pass is the conditional one
        ((2, True), 2, [4], True),
        ((1, True), 2, [3], True),  # AND: the count makes one conditional pass of all
        ((1, True), 2, [1, 1, 1], None),  # AND, one by one: of the two parts only the first gets the text
    ],
    indirect=["hook"],
    ids=str,
)
def test_a_step_of_a1111(
    unet: nn.Module, hook: CountingHook, conds: int, batches: list[int], extra: bool | None, wanted: bool
) -> None:
    *_, plain, _ = a1111(unet, hook, conds, batches, None)
    after_plain, before = hook.state(), snapshot(unet)
    hook.calls = 0
    reuse = Reuse(wanted)
    x, text, sigma, own, perturbed = a1111(unet, hook, conds, batches, reuse)
    assert hook.state() == after_plain
    assert torch.equal(own, plain)
    for row in range(conds):
        some, sigmas = slice(row, row + 1), sigma[row, None, None, None]
        for out, weakened in ((own, False), (perturbed, True)):
            scaled = x[some] / (1 + sigmas**2).sqrt()
            given = (scaled, 100 * sigma[some], text[some], row == 0 if extra is None else extra)
            assert_close(out[some], x[some] - sigmas * expected(unet, *given, weakened))
    assert (reuse.shared, reuse.whole) == (0, 1)
    assert (WHOLE in (reuse.comment() or "")) is wanted
    assert snapshot(unet) == before


def forge_calls(unet: nn.Module, x: Tensor, texts: list[tuple[int, Tensor]], batched: bool) -> Tensor:
    """The double of calc_cond_uncond_batch: the mean prediction of the conditionings."""
    kept = []
    for group in [texts] if batched else [[each] for each in texts]:
        rows, time = torch.cat([x] * len(group)), torch.full((len(group) * x.shape[0],), 100.0)
        options = {"cond_or_uncond": [kind for kind, _ in group]}
        context = torch.cat([text.expand(x.shape[0], -1, -1) for _, text in group])
        out = unet(rows, time, context=context, transformer_options=options).chunk(len(group))
        kept += [chunk for (kind, _), chunk in zip(group, out, strict=True) if kind == COND]
    return sum(kept) / len(kept)


@torch.no_grad()
def forge(unet: nn.Module, hook: CountingHook, texts: list[tuple[int, Tensor]], batched: bool, reuse: Any) -> Any:
    x = normal(hook.images, 4, 16, 24, seed=1)
    hook.begin_step()
    step = None
    if reuse is not None:
        layers = choose_layers(unet, LdmUnet(), "mid")
        step = forge_step.ForgeStep(unet, x, 1.5, layers, LdmUnet(), Sinkhorn(cost="uniform"), reuse, 7.0)
    own = forge_calls(unet, x, texts, batched)
    if step is None:
        return x, own, None
    step.remove()
    conds = [{"text": text} for kind, text in texts if kind == COND]
    return (
        x,
        own,
        step.predict(lambda given: forge_calls(unet, x, [(COND, each["text"]) for each in given], batched), conds),
    )


@pytest.mark.parametrize("wanted", [True, False], ids=["reuse", "whole"])
@pytest.mark.parametrize(
    ("hook", "batched", "extra"),
    [
        ((1, False), True, True),
        ((2, False), True, True),
        # The host runs the unconditional pass first, and the hook takes that for the conditional one.
        ((1, False), False, False),
    ],
    indirect=["hook"],
    ids=str,
)
def test_a_step_of_forge(unet: nn.Module, hook: CountingHook, batched: bool, extra: bool, wanted: bool) -> None:
    texts = [(UNCOND, normal(1, 7, 24, seed=3)), (COND, normal(1, 7, 24, seed=2))]
    _, plain, _ = forge(unet, hook, texts, batched, None)
    after_plain, before = hook.state(), snapshot(unet)
    hook.calls = 0
    reuse = Reuse(wanted)
    x, own, perturbed = forge(unet, hook, texts, batched, reuse)
    assert hook.state() == after_plain
    assert torch.equal(own, plain)
    text, time = texts[1][1].expand(hook.images, -1, -1), torch.full((hook.images,), 100.0)
    for out, weakened in ((own, False), (perturbed, True)):
        assert_close(out, expected(unet, x, time, text, extra, weakened))
    assert (reuse.shared, reuse.whole) == (0, 1)
    assert (WHOLE in (reuse.comment() or "")) is wanted
    assert snapshot(unet) == before


@torch.no_grad()
def test_nothing_is_tried_inside_the_hosts_pass(unet: nn.Module) -> None:
    """The host's own pass has as many attention calls as without ASAG, while it goes on."""
    hook, during = CountingHook(unet, 1, EXTRA, False), []
    handle = unet.out.register_forward_hook(lambda *_: during.append(hook.state()))
    try:
        texts = [(UNCOND, normal(1, 7, 24, seed=3)), (COND, normal(1, 7, 24, seed=2))]
        forge(unet, hook, texts, True, None)
        hook.calls = 0
        forge(unet, hook, texts, True, Reuse(True))
    finally:
        handle.remove()
        hook.remove()
    assert during[0] == during[1] == (0, True, len(hook.layers))
