"""DiffusersUnet: the ldm addresses, and an attention that does all that the host's does."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention, CustomDiffusionAttnProcessor
from torch import nn

from asag.blocks import Address, BlocksError, summarize
from asag.models.base import AttentionLayer, TokenGrid, UnsupportedModel, family_of
from asag.models.diffusers_unet import DiffusersUnet
from asag.operators import Identity, Operator, Sinkhorn
from asag.perturb import choose_layers, perturbed
from tests.support import Softmax, snapshot
from tests.tiny_diffusers import (
    SDXL_DEPTHS,
    TEXT_TOKENS,
    TEXT_WIDTH,
    lively,
    normal,
    sd15_unet,
    sdxl_unet,
)

FAMILY = DiffusersUnet()


def addresses(model: nn.Module) -> list[Address]:
    return [layer.address for layer in FAMILY.layers(model)]


def chosen(model: nn.Module, blocks: str) -> list[AttentionLayer]:
    return choose_layers(model, FAMILY, blocks)


def predict(unet: nn.Module, height: int = 16, width: int = 16) -> torch.Tensor:
    given = {"encoder_hidden_states": normal(2, TEXT_TOKENS, TEXT_WIDTH, seed=3)}
    if unet.config.addition_embed_type:
        given["added_cond_kwargs"] = {"text_embeds": normal(2, TEXT_WIDTH), "time_ids": 100 * normal(2, 6).abs()}
    return unet(normal(2, 4, height, width), 500, **given).sample


def test_sd15_has_the_addresses_of_the_ldm_layout() -> None:
    unet = sd15_unet()
    assert summarize(addresses(unet)) == "in.1-2, in.4-5, in.7-8, mid, out.3-11"
    assert [layer.module for layer in chosen(unet, "in.4, out.3")] == [
        unet.down_blocks[1].attentions[0].transformer_blocks[0].attn1,
        unet.up_blocks[1].attentions[0].transformer_blocks[0].attn1,
    ]
    assert chosen(unet, "out.11")[0].module is unet.up_blocks[3].attentions[2].transformer_blocks[0].attn1


def test_sdxl_has_the_addresses_of_the_ldm_layout() -> None:
    unet = sdxl_unet(transformer_layers_per_block=SDXL_DEPTHS)
    assert summarize(addresses(unet)) == "in.4-5, in.7-8, mid, out.0-5"
    assert [len(chosen(unet, blocks)) for blocks in ("in.4", "in.7", "mid", "out.0", "out.3")] == [2, 10, 10, 10, 2]
    assert chosen(unet, "out.3.1")[0].module is unet.up_blocks[1].attentions[0].transformer_blocks[1].attn1


def test_auto_is_every_layer_of_the_middle_block() -> None:
    unet = sdxl_unet(transformer_layers_per_block=SDXL_DEPTHS)
    middle = [block.attn1 for block in unet.mid_block.attentions[0].transformer_blocks]
    assert [layer.module for layer in chosen(unet, "auto")] == middle


def test_a_layout_of_its_own_is_numbered_by_resnets_and_downsamplers() -> None:
    unet = sdxl_unet(layers_per_block=[1, 3, 2], transformer_layers_per_block=(1, 2, 1))
    # conv_in 0; resnet 1, downsampler 2; resnets 3 to 5, downsampler 6; resnets 7 and 8. Up: 2+1, 3+1, 1+1 resnets.
    assert summarize(addresses(unet)) == "in.3-5, in.7-8, mid, out.0-6"


def test_blocks_without_attention_and_a_missing_middle_block() -> None:
    bare = sd15_unet(
        down_block_types=("DownBlock2D", "SimpleCrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "SkipUpBlock2D", "UpBlock2D"),
        mid_block_type=None,
        block_out_channels=(8, 8, 16, 16),
    )
    assert summarize(addresses(bare)) == "in.7-8, out.3-5"
    with pytest.raises(BlocksError, match="this model has: in"):
        chosen(bare, "auto")


def test_layers_that_see_the_text_alone_are_no_self_attention() -> None:
    unet = sd15_unet(only_cross_attention=(False, True, False, False))
    assert summarize(addresses(unet)) == "in.1-2, in.7-8, mid, out.3-5, out.9-11"


def test_matches_by_class_name() -> None:
    class Derived(type(sd15_unet())):
        pass

    assert FAMILY.matches(sd15_unet())
    assert FAMILY.matches(Derived.__new__(Derived))
    assert not FAMILY.matches(nn.Linear(1, 1))
    with pytest.raises(UnsupportedModel, match="Linear; allowed: diffusers UNet2DConditionModel"):
        family_of(nn.Linear(1, 1), [FAMILY])


@pytest.mark.parametrize("variant", ["sd15", "sdxl", "sd2", "fused", "sliced"])
@torch.no_grad()
def test_softmax_in_every_layer_changes_nothing(variant: str) -> None:
    changes = {"use_linear_projection": True, "upcast_attention": True} if variant == "sd2" else {}
    unet = sdxl_unet(transformer_layers_per_block=SDXL_DEPTHS) if variant == "sdxl" else sd15_unet(**changes)
    if variant == "fused":
        unet.fuse_qkv_projections()
        for layer in FAMILY.layers(unet):
            layer.module.to_q = None  # must not be used any more
    if variant == "sliced":
        unet.set_attention_slice("max")
    before, plain = snapshot(unet), predict(unet)
    with perturbed(chosen(unet, "all"), FAMILY, Softmax()):
        assert snapshot(unet) != before
        replaced = predict(unet)
    assert snapshot(unet) == before
    # Sliced attention is another kernel: its rounding differs, layer upon layer.
    assert (replaced - plain).abs().max() <= (1e-4 if variant == "sliced" else 1e-5) * plain.abs().max()
    with perturbed(chosen(unet, "mid"), FAMILY, Sinkhorn()):
        assert (predict(unet) - plain).abs().max() > 1e-3 * plain.abs().max()


@torch.no_grad()
def test_every_layer_runs_once_and_gets_its_grid() -> None:
    class Recording(Softmax):
        def __init__(self) -> None:
            self.grids: list[tuple[int, int] | None] = []

        def plain(self, query, key, value, grid=None):
            self.grids.append(grid)
            return super().plain(query, key, value, grid)

    unet, operator = sd15_unet(), Recording()
    with perturbed(chosen(unet, "in.1, in.4, mid, out.3"), FAMILY, operator, TokenGrid((36, 20))):
        predict(unet, 36, 20)
    assert operator.grids == [(36, 20), (18, 10), (5, 3), (9, 5)]


@pytest.mark.parametrize(
    ("dimensions", "options"),
    [(3, {}), (4, {}), (3, {"qk_norm": "layer_norm"}), (4, {"spatial_norm_dim": 4})],
)
@torch.no_grad()
def test_every_part_of_an_attention_module_is_kept(dimensions: int, options: dict) -> None:
    attention = lively(
        Attention(32, heads=2, dim_head=16, bias=True, norm_num_groups=4, residual_connection=True, **options)
    )
    attention.rescale_output_factor = 1.7
    tokens = normal(2, 32, 6, 4) if dimensions == 4 else normal(2, 24, 32)
    temb = normal(2, 4, 3, 2) if "spatial_norm_dim" in options else None
    plain = attention(tokens, temb=temb)
    with perturbed([AttentionLayer(Address("mid", 0, 0), attention)], FAMILY, Softmax()):
        torch.testing.assert_close(attention(tokens, temb=temb), plain, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_layers_are_called_as_modules_so_lora_counts() -> None:
    unet = sd15_unet()
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    for name in ("to_q", "to_k", "to_v"):
        setattr(attention, name, nn.Sequential(getattr(attention, name), lively(nn.Linear(16, 16), seed=5)))
    attention.to_out[0] = nn.Sequential(attention.to_out[0], lively(nn.Linear(16, 16), seed=6))
    plain = predict(unet, 32, 32)
    with perturbed(chosen(unet, "mid"), FAMILY, Softmax()):
        assert (predict(unet, 32, 32) - plain).abs().max() <= 1e-5 * plain.abs().max()


@torch.no_grad()
def test_heads_are_split() -> None:
    """Two heads whose operator differs by head: joined wrongly, the outputs would mix."""

    class FirstHeadOnly(Operator):
        def plain(self, query, key, value, grid=None):
            assert query.shape[1] == 2
            return torch.cat([value[:, :1], torch.zeros_like(value[:, 1:])], dim=1)

    unet = sd15_unet()
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    tokens = normal(2, 16, 16)
    with perturbed(chosen(unet, "mid"), FAMILY, FirstHeadOnly()):
        out = attention(tokens)
    value = attention.to_v(tokens)
    value[..., 8:] = 0
    torch.testing.assert_close(out, attention.to_out[0](value))


def test_a_processor_of_another_kind_is_refused() -> None:
    unet = sd15_unet()
    layers = chosen(unet, "mid")
    layers[0].module.set_processor(CustomDiffusionAttnProcessor(hidden_size=16, cross_attention_dim=16))
    before = snapshot(unet)
    with (
        pytest.raises(UnsupportedModel, match=r"mid\.0: attention processor CustomDiffusionAttnProcessor; allowed"),
        perturbed(layers, FAMILY, Identity()),
    ):
        pass
    assert snapshot(unet) == before


@torch.no_grad()
def test_masks_that_mask_something_are_refused() -> None:
    unet = sd15_unet()
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    tokens, mask = normal(2, 16, 16), torch.zeros(2, 1, 16)
    plain = attention(tokens)
    with perturbed(chosen(unet, "mid"), FAMILY, Softmax()):
        torch.testing.assert_close(attention(tokens, attention_mask=mask), plain)
        mask[..., 3] = -10000.0
        with pytest.raises(ValueError, match=r"mid\.0: masked"):
            attention(tokens, attention_mask=mask)
        with pytest.raises(ValueError, match="over a text"):
            attention(tokens, encoder_hidden_states=tokens)
