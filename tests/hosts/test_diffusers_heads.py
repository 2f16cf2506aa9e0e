"""`amount` and heads in diffusers' pipelines and in the guider, against a perturbed pass that is written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from asag.blocks import Address, BlocksError
from asag.hosts.diffusers_guider import AdversarialSinkhornAttentionGuidance
from asag.hosts.diffusers_models import FAMILIES
from asag.hosts.diffusers_pipeline import asag_guidance
from asag.models.base import family_of, head_count
from asag.operators import Operator, Sinkhorn
from asag.perturb import choose_layers
from tests.hosts.test_diffusers_guider import drive, predictions
from tests.test_chosen_heads import HeadByHead
from tests.tiny_diffusers import PIPES, difference, inputs, latents, sd3_transformer, sd15_pipe


class Part(HeadByHead):
    """Of the last head alone, `amount` of the operator's output."""

    def __init__(self, amount: float, number: int) -> None:
        super().__init__(Sinkhorn(), number)
        self.amount = amount

    def mixed(self, weakened: Tensor, *given: Any) -> Tensor:
        ordinary = torch.nn.functional.scaled_dot_product_attention(*given[:3], attn_mask=given[3])
        return super().mixed((1 - self.amount) * ordinary + self.amount * weakened, *given)


def written_out(pipe: Any, block: str, operator: Operator, call: dict[str, Any], reuse: bool) -> Tensor:
    """The guided picture with `operator` in all heads of a block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asag.settings.AsagSettings.operator", lambda self: operator)
        return latents(pipe, call, blocks=block, scale=2.0, reuse=reuse)


BLOCKS = {"sd15": "mid", "sdxl": "out.5", "sd3": "joint.1", "flux": "single.1"}


@pytest.mark.parametrize("reuse", [True, False], ids=["shared", "whole"])
@pytest.mark.parametrize("kind", PIPES)
@pytest.mark.usefixtures("double")
def test_a_part_of_the_weakened_attention_in_one_head(kind: str, reuse: bool) -> None:
    pipe, given, block = PIPES[kind](), inputs(kind, images=2, steps=2), BLOCKS[kind]
    model = getattr(pipe, "unet", None) or pipe.transformer
    last = (head_count(choose_layers(model, family_of(model, FAMILIES), block)[0].module) or 0) - 1
    assert last > 0
    expected = written_out(pipe, block, Part(0.6, last), given, reuse)
    found = latents(pipe, given, blocks=f"{block}:h{last}", amount=0.6, scale=2.0, reuse=reuse)
    assert difference(found, expected) < 1e-10
    assert difference(latents(pipe, given), expected) > 1e-6


@torch.no_grad()
def test_the_guider_takes_heads_and_a_part() -> None:
    model = sd3_transformer()
    cond, uncond, weakened = predictions(model, "joint.1", Part(0.3, 1))
    guider = AdversarialSinkhornAttentionGuidance(4.0, 2.0, adversarial_guidance_blocks="joint.1:h1", amount=0.3)
    found, ran = drive(guider, model)
    assert "pred_cond_adversarial" in ran
    torch.testing.assert_close(found, uncond + 4.0 * (cond - uncond) + 2.0 * (cond - weakened), rtol=1e-4, atol=1e-5)


def test_an_amount_of_0_takes_no_pass_of_the_guider() -> None:
    assert AdversarialSinkhornAttentionGuidance(4.0, 2.0, amount=0.0).num_conditions == 2


def test_aligned_heads_are_chosen_anew_for_each_picture() -> None:
    pipe, given = sd15_pipe(), inputs("sd15", steps=2)
    alone = latents(pipe, given, blocks="mid:aligned")
    with asag_guidance(pipe, blocks="mid:aligned", figures=True) as trace:
        pipe(**given | {"latents": -given["latents"]})
        first = trace.heads
        assert torch.equal(pipe(**given).images, alone)
    ((heads,),) = trace.heads.values()
    assert torch.equal(latents(pipe, given, blocks=f"mid:h{','.join(map(str, heads))}"), alone)
    assert set(first) == {Address("mid", 0, 0)}


def test_a_missing_head_is_told_at_once() -> None:
    with (
        pytest.raises(BlocksError, match=r"'mid.0:h99'; mid.0 has: heads 0 to "),
        asag_guidance(sd15_pipe(), blocks="mid:h99"),
    ):
        pass
