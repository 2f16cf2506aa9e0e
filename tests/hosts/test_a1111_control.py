"""ControlNet's reference mode in AUTOMATIC1111, on the UNet that it runs: the reference is shown to it unweakened.

The double does what scripts/hook.py does: in each call of the UNet it first shows it the reference, with noise, when
every block keeps what it attends to; then the picture's blocks attend to that as well.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asag.hosts import other_code
from asag.hosts.a1111_control import fixes_rows, references_spared, remembers
from asag.hosts.a1111_step import A1111Step
from asag.hosts.reuse import Reuse
from asag.models.ldm_unet import LdmUnet
from asag.operators import Sinkhorn
from asag.perturb import choose_layers
from tests.hosts.test_a1111_step import InnerModel
from tests.models.test_ldm_unet import SD15, build
from tests.tiny_diffusers import normal


class Reference(nn.Module):
    """The double of a UnetHook with one reference unit."""

    def __init__(self, unet: nn.Module, latent: Tensor) -> None:
        super().__init__()
        self.control_params = [SimpleNamespace(used_hint_cond_latent=latent)]
        self.latent, self.writes, self.written = latent, False, 0
        blocks = [each for each in unet.modules() if type(each).__name__ == "BasicTransformerBlock"]
        self.__dict__["attn_module_list"] = blocks
        self.original_forward = unet.forward
        for block in blocks:
            block.bank, block._forward = [], self.inner_forward(block)
        unet.forward = self.forward

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        for block in self.attn_module_list:
            block.bank = []
        noise = torch.randn(x.shape)
        self.writes = True
        self.original_forward(self.latent.expand_as(x) + noise, timesteps, context=context)
        self.writes = False
        return self.original_unhooked(x, timesteps, context)

    def original_unhooked(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """hook.py runs the UNet's parts itself here."""
        return type(self.unet).forward(self.unet, x, timesteps, context=context)

    def inner_forward(self, block: nn.Module) -> Any:
        def forward(x: Tensor, context: Tensor | None = None) -> Tensor:
            own = block.norm1(x)
            if self.writes:
                block.bank.append(own.clone())
                self.written += 1
                attended = block.attn1(own, context=own)
            else:
                attended = block.attn1(own, context=torch.cat([own, *block.bank], dim=1))
                block.bank = []
            x = attended + x
            x = block.attn2(block.norm2(x), context=context) + x
            return block.ff(block.norm3(x)) + x

        return forward


@pytest.fixture
def unet() -> nn.Module:
    return build(SD15)


def expected(unet: nn.Module, reference: Reference, x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
    """The step's rows with uniform attention in the middle block of the picture's pass alone."""
    middle = unet.middle_block[1].transformer_blocks[0].attn1
    own = middle.forward

    def weakened(rows: Tensor, context: Tensor) -> Tensor:
        if reference.writes:
            return own(rows, context=context)
        value = middle.to_v(context).mean(dim=1, keepdim=True)
        return middle.to_out(value.expand(-1, rows.shape[1], -1))

    middle.forward = weakened
    try:
        return InnerModel(unet)(x, sigma, cond={"c_crossattn": [text]})
    finally:
        del middle.forward


@torch.no_grad()
@pytest.mark.parametrize("wanted", [True, False])
def test_the_reference_is_shown_unweakened(unet: nn.Module, wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_code, "STATELESS_CODE", ((__name__, "Reference."),))
    reference = Reference(unet, normal(1, 4, 16, 24, seed=4))
    reference.__dict__["unet"] = unet
    p = SimpleNamespace(scripts=SimpleNamespace(alwayson_scripts=[SimpleNamespace(latest_network=reference)]))
    assert remembers(p)
    assert fixes_rows(p)
    x, text, sigma = normal(2, 4, 16, 24, seed=1), normal(2, 7, 24, seed=2), torch.tensor([2.0, 2.0])
    torch.manual_seed(3)
    wanted_rows = expected(unet, reference, x, sigma, text)[:1]
    model, reuse = InnerModel(unet), Reuse(wanted)
    reuse.give_up("reference")
    before, layers = reference.original_forward, choose_layers(unet, LdmUnet(), "mid")
    rest = (unet, layers, LdmUnet(), Sinkhorn(cost="uniform"), reuse)
    step = A1111Step(SimpleNamespace(inner_model=model), 1.0, 1, 1, *rest)
    torch.manual_seed(3)
    own = model(x, sigma, cond={"c_crossattn": [text]})
    step.remove()
    after = torch.rand(())
    torch.manual_seed(3)
    assert torch.equal(own, model(x, sigma, cond={"c_crossattn": [text]}))
    with references_spared(p, layers):
        perturbed = step.predict(whole_calls=True)
    assert torch.rand(()) == after
    assert float((perturbed - wanted_rows).norm() / wanted_rows.norm()) < 1e-5
    assert float((perturbed - own[:1]).norm() / own[:1].norm()) > 1e-4
    assert reference.original_forward is before
    assert all(block.bank == [] for block in reference.attn_module_list)


def test_without_a_unit_nothing_is_remembered() -> None:
    network = SimpleNamespace(attn_module_list=[], control_params=[SimpleNamespace(used_hint_cond_latent=None)])
    p = SimpleNamespace(scripts=SimpleNamespace(alwayson_scripts=[SimpleNamespace(latest_network=network)]))
    for each in (
        p,
        SimpleNamespace(scripts=None),
        SimpleNamespace(scripts=SimpleNamespace(alwayson_scripts=[object()])),
    ):
        assert not remembers(each)
        assert not fixes_rows(each)
    network.control_params[0].used_hint_cond_latent = torch.zeros(1)
    assert fixes_rows(p)
