"""The ldm UNet of stable-diffusion-sdkit, the very package that AUTOMATIC1111 runs, narrow and with random weights."""

import sys
from contextlib import nullcontext
from types import ModuleType

import pytest
import torch
from ldm.modules.diffusionmodules import openaimodel
from torch import nn

from asag.blocks import Address, BlocksError
from asag.models.base import AttentionLayer, TokenGrid, UnsupportedModel, family_of, split_heads
from asag.models.forge_unet import ForgeUnet
from asag.models.ldm_unet import LdmUnet
from asag.operators import Identity, QueryBlur, Sinkhorn
from asag.perturb import choose_layers, perturbed, slice_rows
from tests.support import Softmax, snapshot

FAMILY = LdmUnet()
SD15 = {"num_heads": 4, "channel_mult": [1, 2, 4, 4], "attention_resolutions": [4, 2, 1], "transformer_depth": 1}
SDXL = {
    "num_head_channels": 16,
    "channel_mult": [1, 2, 4],
    "attention_resolutions": [4, 2],
    "use_linear_in_transformer": True,
}


def build(layout: dict, depth: int = 1) -> nn.Module:
    torch.manual_seed(0)
    options = {"num_res_blocks": 2, "transformer_depth": depth} | layout
    options["transformer_depth"] = depth
    unet = openaimodel.UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=32, use_spatial_transformer=True,
        context_dim=[24] * depth, legacy=False, use_checkpoint=False, **options,
    ).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if parameter.ndim > 1:
                gain = 2.0 if "attn1.to_q" in name or "attn1.to_k" in name else 1.0
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * gain / fan_in**0.5)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return unet


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return build(SD15)


@torch.no_grad()
def run(unet: nn.Module, height: int = 32, width: int = 32, rows: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 4, height, width, generator=generator).repeat(rows, 1, 1, 1)
    return unet(x, torch.full((rows,), 500), torch.randn(1, 7, 24, generator=generator).repeat(rows, 1, 1))


def difference(out: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, over the whole prediction: rounding of single values grows through a random network."""
    return float((out - expected).norm() / expected.norm())


def addresses(model: nn.Module, blocks: str) -> list[str]:
    return [str(layer.address) for layer in choose_layers(model, FAMILY, blocks)]


def test_addresses_of_sd15(unet):
    inputs = [f"in.{block}.0" for block in (1, 2, 4, 5, 7, 8)]
    assert addresses(unet, "all") == [*inputs, "mid.0", *(f"out.{block}.0" for block in range(3, 12))]


def test_middle_block_of_sdxl_is_all_ten_layers():
    model = build(SDXL, depth=10)
    assert addresses(model, "auto") == addresses(model, "mid") == [f"mid.{layer}" for layer in range(10)]
    assert addresses(model, "mid.3-4") == ["mid.3", "mid.4"]
    assert len(addresses(model, "out.0")) == 10


def test_unknown_blocks_list_what_there_is(unet):
    with pytest.raises(BlocksError, match=r"'in\.3'; this model has: in.1-2, in.4-5, in.7-8, mid, out.3-11"):
        choose_layers(unet, FAMILY, "in.3")


def test_another_model_is_not_of_the_family():
    with pytest.raises(UnsupportedModel, match=r"torch\.nn\.modules\.linear\.Linear; allowed: SD1"):
        family_of(nn.Linear(1, 1), [FAMILY])


@pytest.mark.parametrize("blocks", ["mid", "in.4, out.3-5", "all"])
def test_softmax_in_place_of_attention_changes_nothing(unet, blocks):
    clean = run(unet)
    with perturbed(choose_layers(unet, FAMILY, blocks), FAMILY, Softmax()):
        assert difference(run(unet), clean) < 2e-5


@pytest.mark.parametrize("operator", [Sinkhorn(), Identity(), QueryBlur(), QueryBlur(0.7)])
@pytest.mark.parametrize("blocks", ["mid", "out.3"])
def test_operators_change_the_prediction(unet, operator, blocks):
    clean = run(unet, 40, 24)
    with perturbed(choose_layers(unet, FAMILY, blocks), FAMILY, operator, TokenGrid((40, 24))):
        changed = run(unet, 40, 24)
    assert (changed - clean).abs().max() > 1e-3 * clean.abs().max()


def test_the_layer_computes_to_out_of_the_operator_of_its_own_projections(unet):
    layer = choose_layers(unet, FAMILY, "out.3")[0]
    x = torch.randn(2, 16, layer.module.to_q.in_features, generator=torch.Generator().manual_seed(3))
    operator = Sinkhorn(iterations=3)
    with torch.no_grad():
        query, key, value = (
            split_heads(getattr(layer.module, name)(x), layer.module.heads) for name in ("to_q", "to_k", "to_v")
        )
        out = operator.plain(query, key, value).transpose(1, 2).reshape(2, 16, -1)
        expected = layer.module.to_out(out)
        with perturbed([layer], FAMILY, operator):
            torch.testing.assert_close(layer.module(x), expected)


def test_replaced_projections_are_called(unet):
    """LoRA and quantised layers stand where to_q, to_k, to_v and to_out were."""

    class Doubling(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.inner(x)

    layer = choose_layers(unet, FAMILY, "mid")[0]
    with perturbed([layer], FAMILY, Sinkhorn()):
        before = run(unet)
        for name in ("to_q", "to_v"):
            setattr(layer.module, name, Doubling(getattr(layer.module, name)))
        try:
            assert (run(unet) - before).abs().max() > 1e-4
        finally:
            for name in ("to_q", "to_v"):
                setattr(layer.module, name, getattr(layer.module, name).inner)
        assert torch.equal(run(unet), before)


def test_key_and_value_inputs_go_through_the_hosts_hypernetworks(unet):
    seen = []

    def through(context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(context.shape)
        return context + 1, context - 1

    family = LdmUnet(through)
    layers = choose_layers(unet, family, "mid")
    with perturbed(layers, FAMILY, Sinkhorn()):
        without = run(unet)
    with perturbed(layers, family, Sinkhorn()):
        assert (run(unet) - without).abs().max() > 1e-4
    assert len(seen) == 1


@pytest.mark.parametrize("failure", [None, RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_behind(unet, failure):
    clean, before = run(unet), snapshot(unet)
    layers = choose_layers(unet, FAMILY, "all")

    def use() -> None:
        with perturbed(layers, FAMILY, Sinkhorn()):
            run(unet)
            assert snapshot(unet) != before
            if failure:
                raise failure

    with pytest.raises(failure) if failure else nullcontext():
        use()
    assert snapshot(unet) == before
    assert torch.equal(run(unet), clean)


def test_a_failing_family_leaves_nothing_behind(unet):
    class Failing(LdmUnet):
        def replacement(self, layer, original, operator, token_grid):
            if str(layer.address) == "out.3.0":
                raise RuntimeError("half way")
            return super().replacement(layer, original, operator, token_grid)

    before = snapshot(unet)
    layers = choose_layers(unet, FAMILY, "all")
    with pytest.raises(RuntimeError, match="half way"), perturbed(layers, Failing(), Sinkhorn()):
        pass
    assert snapshot(unet) == before


def test_nested_use_and_a_forward_of_another_extension(unet):
    layers = choose_layers(unet, FAMILY, "mid")
    theirs = layers[0].module.forward
    layers[0].module.forward = theirs
    try:
        before = snapshot(unet)
        with perturbed(layers, FAMILY, Sinkhorn()):
            outer = run(unet)
            with perturbed(layers, FAMILY, Identity()):
                assert (run(unet) - outer).abs().max() > 1e-4
            assert torch.equal(run(unet), outer)
        assert snapshot(unet) == before
        assert layers[0].module.forward is theirs
    finally:
        del layers[0].module.forward


def test_a_batch_is_its_rows(unet):
    with perturbed(choose_layers(unet, FAMILY, "mid"), FAMILY, Sinkhorn()):
        assert difference(run(unet, rows=3)[2:], run(unet)) < 1e-4


GRIDS = [((33, 41), 5 * 6, (5, 6)), ((64, 64), 4096, (64, 64)), ((8, 8), 5, None)]


@pytest.mark.parametrize(("size", "tokens", "grid"), GRIDS)
def test_grid_of_any_latent_size(size, tokens, grid):
    assert TokenGrid(size).grid(tokens) == grid
    assert TokenGrid(None).grid(tokens) is None


def test_masks_are_refused(unet):
    layer = choose_layers(unet, FAMILY, "mid")[0]
    x = torch.zeros(1, 4, layer.module.to_q.in_features)
    with perturbed([layer], FAMILY, Sinkhorn()), pytest.raises(ValueError, match=r"mid\.0: masked"):
        layer.module(x, mask=torch.ones(1, 4))


def test_additional_tokens_are_refused(unet):
    """CrossAttention of sgm takes them; ldm's doesn't."""
    layer = choose_layers(unet, FAMILY, "mid")[0]
    x = torch.zeros(1, 4, layer.module.to_q.in_features)
    with perturbed([layer], FAMILY, Sinkhorn()), pytest.raises(ValueError, match=r"mid\.0: .* additional tokens"):
        layer.module(x, additional_tokens=torch.ones(1, 2, x.shape[-1]))


def test_slice_rows_cuts_every_tensor_of_the_batch_and_nothing_else():
    crossattn = [torch.arange(6).reshape(3, 2)]
    given = {
        "c_crossattn": crossattn,
        "vector": torch.zeros(3),
        "scale": torch.tensor(2.0),
        "t": torch.zeros(1),
        "n": 3,
    }
    cut = slice_rows(given, slice(0, 2), 3)
    assert cut["c_crossattn"][0].tolist() == [[0, 1], [2, 3]]
    assert cut["vector"].shape == (2,)
    assert cut["scale"] is given["scale"]
    assert cut["t"].shape == (1,)
    assert cut["n"] == 3


@pytest.mark.parametrize(
    "home", [("backend.attention", "attention_function"), ("ldm_patched.ldm.modules.attention", "optimized_attention")]
)
def test_in_forge_another_extensions_attention_is_weakened_inside(home, monkeypatch):
    """Doubles of the host's attention, of a block that calls what stands for attn1, and of an extension's function."""
    module = ModuleType(home[0])
    setattr(module, home[1], lambda *given: torch.zeros(1))
    monkeypatch.setitem(sys.modules, home[0], module)
    x, place = torch.randn(1, 5, 8), ("middle", 0)

    def extension(query, key, value, options):
        return query + getattr(module, home[1])(query, key, value, options["n_heads"])

    def block(x, context, transformer_options):
        return transformer_options["patches_replace"]["attn1"][(*place, 0)](x, 2 * x, 3 * x, {"n_heads": 2})

    layer = AttentionLayer(Address("mid", 0, 0), nn.Identity())
    forward = ForgeUnet().replacement(layer, block, Identity(), TokenGrid(None))
    options = {"block": place, "patches_replace": {"attn1": {place: extension}}}
    torch.testing.assert_close(forward(x, None, options), x + 3 * x)
