"""A step of AUTOMATIC1111 on the UNet that it runs, inside a double of its CFG denoiser's `inner_model`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asag.hosts import other_code
from asag.hosts.a1111_step import A1111Step
from asag.hosts.reuse import Reuse
from asag.models.ldm_unet import LdmUnet
from asag.operators import Sinkhorn
from asag.perturb import choose_layers, perturbed
from tests.models.test_ldm_unet import SD15, build
from tests.support import snapshot
from tests.tiny_diffusers import normal

CONDS, UNCONDS = 3, 2


class InnerModel(nn.Module):
    """The double of k-diffusion's CompVisDenoiser: scales what goes in, and what comes out."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, sigma: Tensor, cond: dict[str, Any]) -> Tensor:
        scaled = x / (1 + sigma[:, None, None, None] ** 2).sqrt()
        return x - sigma[:, None, None, None] * self.unet(scaled, 100 * sigma, context=cond["c_crossattn"][0])


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return build(SD15)


@torch.no_grad()
def guide(unet: nn.Module, batches: list[int], reuse: Reuse, blocks: str = "mid") -> tuple[Tensor, Tensor]:
    """The host's pass over the rows in such batches, and the perturbed conditional rows."""
    family, model = LdmUnet(), InnerModel(unet)
    denoiser = SimpleNamespace(inner_model=model)
    layers = choose_layers(unet, family, blocks)
    step = A1111Step(denoiser, 1.5, CONDS, UNCONDS, unet, layers, family, Sinkhorn(), reuse)
    x, text = normal(CONDS + UNCONDS, 4, 16, 24, seed=1), normal(CONDS + UNCONDS, 7, 24, seed=2)
    sigma = torch.linspace(1, 3, CONDS + UNCONDS)
    out, begin = [], 0
    for size in batches:
        rows = slice(begin, begin + size)
        out.append(model(x[rows], sigma[rows], cond={"c_crossattn": [text[rows]]}))
        begin += size
    step.remove()
    return torch.cat(out), step.predict(whole_calls=False)


def assert_close(out: Tensor, expected: Tensor) -> None:
    assert float((out - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("batches", [[5], [3, 2], [1, 1, 1, 1, 1], [2, 2, 1]])
@pytest.mark.parametrize("blocks", ["mid", "in.1", "out.11"])
def test_rows_that_branch_off_are_those_of_a_whole_pass(unet: nn.Module, batches: list[int], blocks: str) -> None:
    before, shared, whole = snapshot(unet), Reuse(True), Reuse(False)
    own, perturbed = guide(unet, batches, shared, blocks)
    plain, expected = guide(unet, batches, whole, blocks)
    assert_close(own, plain)
    assert_close(perturbed, expected)
    assert float((perturbed - own[:CONDS]).norm()) > 1e-3 * float(own.norm())
    assert (shared.shared, shared.whole, whole.shared, whole.whole) == (1, 0, 0, 1)
    assert snapshot(unet) == before


class Outer(nn.Module):
    """The double of an extension that stands around the UNet's forward, as ControlNet does, and fails or mixes rows."""

    def __init__(self, unet: nn.Module, effect: str) -> None:
        super().__init__()
        self.unet, self.original, self.effect = unet, unet.forward, effect
        unet.forward = self.forward

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        stage = self.unet.output_blocks[-1][0]
        handle = stage.register_forward_pre_hook(self._before)
        try:
            return self.original(x, *args, **kwargs)
        finally:
            handle.remove()

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        if self.effect == "fails" and args[0].shape[0] > CONDS + UNCONDS:
            raise RuntimeError("more rows than were seen before")
        return (args[0] + args[0][-1:], *args[1:]) if self.effect == "mixes" else None


@pytest.mark.parametrize(("effect", "counts"), [("fails", (0, 1)), ("mixes", (0, 1)), ("does no harm", (1, 0))])
def test_what_stands_around_the_unet(
    unet: nn.Module, effect: str, counts: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_code, "STATELESS_CODE", ((__name__, "Outer."),))
    Outer(unet, effect)
    try:
        reuse = Reuse(True)
        own, perturbed = guide(unet, [5], reuse)
        plain, expected = guide(unet, [5], Reuse(False))
    finally:
        del unet.forward
    assert_close(own, plain)
    assert_close(perturbed, expected)
    assert (reuse.shared, reuse.whole) == counts
    assert bool(reuse.comment()) == bool(counts[1])


class Twice(InnerModel):
    """The double of an extension that gives the UNet each row twice."""

    def forward(self, x: Tensor, sigma: Tensor, cond: dict[str, Any]) -> Tensor:
        return self.unet(x.repeat(2, 1, 1, 1), sigma.repeat(2), cond["c_crossattn"][0].repeat(2, 1, 1))[: x.shape[0]]


def test_a_unet_that_gets_other_rows_takes_a_whole_pass(unet: nn.Module) -> None:
    reuse, family, model = Reuse(True), LdmUnet(), Twice(unet)
    denoiser, layers = SimpleNamespace(inner_model=model), choose_layers(unet, LdmUnet(), "mid")
    step = A1111Step(denoiser, 1.0, 1, 1, unet, layers, family, Sinkhorn(), reuse)
    with torch.no_grad():
        model(normal(2, 4, 16, 24), torch.ones(2), cond={"c_crossattn": [normal(2, 7, 24)]})
        step.remove()
        step.predict(whole_calls=False)
    assert (reuse.shared, reuse.whole) == (0, 1)
    assert "the UNet was given 4 rows of 2" in reuse.comment()


class Drifting(InnerModel):
    """The double of an extension that gives the UNet something else each time."""

    calls = 0

    def forward(self, x: Tensor, sigma: Tensor, cond: dict[str, Any]) -> Tensor:
        self.calls += 1
        return super().forward(x + 0.1 * self.calls, sigma, cond)


def test_a_unet_that_is_asked_for_other_rows_than_before_takes_a_whole_pass(unet: nn.Module) -> None:
    reuse, family, model = Reuse(True), LdmUnet(), Drifting(unet)
    layers, before = choose_layers(unet, family, "mid"), snapshot(unet)
    step = A1111Step(SimpleNamespace(inner_model=model), 1.0, 1, 1, unet, layers, family, Sinkhorn(), reuse)
    x, text = normal(2, 4, 16, 24), normal(2, 7, 24)
    with torch.no_grad():
        model(x, torch.ones(2), cond={"c_crossattn": [text]})
        step.remove()
        found = step.predict(whole_calls=False)
        with perturbed(layers, family, Sinkhorn()):
            expected = InnerModel.forward(model, x[:1] + 0.3, torch.ones(1), {"c_crossattn": [text[:1]]})
    assert_close(found, expected)
    assert (reuse.shared, reuse.whole) == (0, 1)
    assert "the model got other inputs than before" in reuse.comment()
    assert snapshot(unet) == before


@pytest.mark.parametrize("place", ["inner_model", "inner_model.inner_model", "inner_model.inner_model.model"])
def test_what_hooks_into_a_module_around_the_unet_may_count_calls(unet: nn.Module, place: str) -> None:
    """k-diffusion's wrapper, the LatentDiffusion and its DiffusionWrapper."""
    denoiser = nn.Module()
    denoiser.inner_model = InnerModel(unet)
    denoiser.inner_model.inner_model = nn.Module()
    denoiser.inner_model.inner_model.model = nn.Module()
    layers = choose_layers(unet, LdmUnet(), "mid")
    for hooked in (False, True):
        if hooked:
            denoiser.get_submodule(place).register_forward_hook(lambda *_: None)
        reuse = Reuse(True)
        step = A1111Step(denoiser, 1.0, 1, 1, unet, layers, LdmUnet(), Sinkhorn(), reuse)
        step.remove()
        assert reuse.on is not hooked
        assert bool(reuse.counting) is hooked
