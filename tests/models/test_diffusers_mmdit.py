"""SD3 and Flux: addresses, and attention replaced inside the host's own forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from torch import Tensor, nn

from asag.blocks import Address
from asag.models.base import AttentionLayer, Family, TokenGrid, UnsupportedModel
from asag.models.diffusers_mmdit import FluxTransformer, ReplacedAttention, Sd3Transformer
from asag.operators import Identity, QueryBlur, Sinkhorn
from asag.perturb import choose_layers, perturbed
from tests.support import Softmax, snapshot
from tests.tiny_diffusers import (
    TEXT_TOKENS,
    TEXT_WIDTH,
    flux_transformer,
    lively,
    normal,
    sd3_transformer,
    sd35_transformer,
)

MODELS: dict[str, tuple[Any, Family]] = {
    "sd3": (sd3_transformer, Sd3Transformer()),
    "sd35": (sd35_transformer, Sd3Transformer()),
    "flux": (flux_transformer, FluxTransformer()),
}
HEIGHT, WIDTH = 4, 6


class Recording(Softmax):
    """SoftMax that notes what it was called with: (image slice or None, tokens, grid)."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[int, int] | None, int, Any]] = []

    def plain(self, query, key, value, grid=None):
        self.calls.append((None, query.shape[2], grid))
        return super().plain(query, key, value, grid)

    def joint(self, query, key, value, image, grid=None):
        self.calls.append(((image.start, image.stop), query.shape[2], grid))
        return super().joint(query, key, value, image, grid)


def predict(model: nn.Module) -> Tensor:
    given: dict[str, Any] = {
        "encoder_hidden_states": normal(2, TEXT_TOKENS, TEXT_WIDTH, seed=3),
        "pooled_projections": normal(2, TEXT_WIDTH, seed=4),
        "timestep": torch.tensor([0.5, 0.5]),
    }
    if "Flux" not in type(model).__name__:
        return model(hidden_states=normal(2, 4, 2 * HEIGHT, 2 * WIDTH), **given).sample
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    ids = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1)
    text_ids = torch.zeros(TEXT_TOKENS, 3)
    return model(hidden_states=normal(2, HEIGHT * WIDTH, 16), img_ids=ids, txt_ids=text_ids, **given).sample


def test_addresses() -> None:
    names = {kind: [str(layer.address) for layer in family.layers(make())] for kind, (make, family) in MODELS.items()}
    assert names["sd3"] == ["joint.0.0", "joint.1.0", "joint.2.0", "joint.3.0"]
    assert names["sd35"] == [f"joint.{block}.{layer}" for block in range(3) for layer in range(2)] + ["joint.3.0"]
    assert names["flux"] == ["double.0.0", "double.1.0", "single.0.0", "single.1.0", "single.2.0"]


def test_auto_is_the_middle_of_the_depth() -> None:
    def auto(kind: str, **changes: Any) -> str:
        make, family = MODELS[kind]
        return str(family.default_blocks([layer.address for layer in family.layers(make(**changes))]))

    assert auto("sd3") == "joint.2"
    assert auto("sd3", num_layers=24) == "joint.12"
    assert auto("flux") == "single.0"
    assert auto("flux", num_layers=19, num_single_layers=38) == "single.9"
    assert auto("flux", num_layers=5, num_single_layers=2) == "double.3"


def test_matches() -> None:
    for make, family in MODELS.values():
        assert [other.matches(make()) for other in (Sd3Transformer(), FluxTransformer())] == [
            isinstance(family, cls) for cls in (Sd3Transformer, FluxTransformer)
        ]


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_softmax_in_every_layer_changes_nothing(kind: str) -> None:
    make, family = MODELS[kind]
    model = make()
    before, plain = snapshot(model), predict(model)
    with perturbed(family.layers(model), family, Softmax()):
        assert snapshot(model) != before
        replaced = predict(model)
    assert snapshot(model) == before
    assert (replaced - plain).abs().max() <= 1e-5 * plain.abs().max()
    for layer in family.layers(model):
        with perturbed([layer], family, Sinkhorn()):
            assert (predict(model) - plain).abs().max() > 1e-4 * plain.abs().max(), str(layer.address)


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_every_layer_gets_its_image_tokens_and_grid(kind: str) -> None:
    make, family = MODELS[kind]
    model, operator = make(), Recording()
    with perturbed(family.layers(model), family, operator, TokenGrid((2 * HEIGHT, 2 * WIDTH))):
        predict(model)
    images, grid = HEIGHT * WIDTH, (HEIGHT, WIDTH)
    joint = ((0, images), images + TEXT_TOKENS, grid)
    expected = {
        "sd3": [joint] * 4,
        "sd35": [joint, (None, images, grid)] * 3 + [joint],
        "flux": [((TEXT_TOKENS, TEXT_TOKENS + images), images + TEXT_TOKENS, grid)] * 5,
    }
    assert operator.calls == expected[kind]


@pytest.mark.parametrize(("kind", "block"), [("sd3", 1), ("flux", 1)])
@pytest.mark.parametrize("operator", [Sinkhorn(), Identity(), QueryBlur()], ids=lambda each: type(each).__name__)
@torch.no_grad()
def test_text_queries_are_untouched(kind: str, block: int, operator: Any) -> None:
    make, family = MODELS[kind]
    model = make()
    attention = model.transformer_blocks[block].attn
    image, text = normal(2, 24, attention.query_dim), normal(2, TEXT_TOKENS, attention.query_dim, seed=2)
    plain_image, plain_text = attention(hidden_states=image, encoder_hidden_states=text)
    blocks = f"{'double' if kind == 'flux' else 'joint'}.{block}"
    with perturbed(choose_layers(model, family, blocks), family, operator):
        other_image, other_text = attention(hidden_states=image, encoder_hidden_states=text)
    torch.testing.assert_close(other_text, plain_text, rtol=1e-5, atol=1e-5)
    assert (other_image - plain_image).abs().max() > 1e-2


@torch.no_grad()
def test_text_queries_of_a_single_block_are_untouched() -> None:
    model = flux_transformer()
    block = model.single_transformer_blocks[1]
    given = {"hidden_states": normal(2, 24, 32), "encoder_hidden_states": normal(2, 6, 32), "temb": normal(2, 32)}
    plain_text, plain_image = block(**given)
    with perturbed(choose_layers(model, FluxTransformer(), "single.1"), FluxTransformer(), Sinkhorn()):
        text, image = block(**given)
    torch.testing.assert_close(text, plain_text, rtol=1e-5, atol=1e-5)
    assert (image - plain_image).abs().max() > 1e-2


@torch.no_grad()
def test_the_call_of_an_ip_adapter_passes() -> None:
    """Its keys are those of another image: as many as the image's own tokens, to make it hard."""
    model, operator = flux_transformer(), Recording()
    attention = model.transformer_blocks[0].attn
    attention.set_processor(lively(FluxIPAdapterAttnProcessor(32, 8, num_tokens=(24,))))
    given = {"hidden_states": normal(2, 24, 32), "encoder_hidden_states": normal(2, TEXT_TOKENS, 32, seed=2)}
    given["ip_hidden_states"] = [normal(2, 24, 8, seed=5)]
    plain = attention(**given)
    with perturbed(choose_layers(model, FluxTransformer(), "double.0"), FluxTransformer(), operator):
        replaced = attention(**given)
    torch.testing.assert_close(replaced, plain, rtol=1e-5, atol=1e-5)
    assert operator.calls == [((6, 30), 30, None)]
    with perturbed(choose_layers(model, FluxTransformer(), "double.0"), FluxTransformer(), Sinkhorn()):
        image, _, adapter = attention(**given)
    torch.testing.assert_close(adapter, plain[2])
    assert (image - plain[0]).abs().max() > 1e-2


@pytest.mark.parametrize("layer", [0, 1])
@torch.no_grad()
def test_the_call_of_an_sd3_ip_adapter_passes(layer: int) -> None:
    model, operator = sd35_transformer(), Recording()
    attention = (model.transformer_blocks[1].attn, model.transformer_blocks[1].attn2)[layer]
    attention.set_processor(lively(SD3IPAdapterJointAttnProcessor2_0(16, 8, 8, timesteps_emb_dim=12)))
    given = {"hidden_states": normal(2, 24, 16), "ip_hidden_states": normal(2, 6, 8), "temb": normal(2, 12)}
    if layer == 0:
        given["encoder_hidden_states"] = normal(2, TEXT_TOKENS, 16, seed=2)
    plain = attention(**given)
    with perturbed(choose_layers(model, Sd3Transformer(), f"joint.1.{layer}"), Sd3Transformer(), operator):
        torch.testing.assert_close(attention(**given), plain, rtol=1e-5, atol=1e-5)
    assert operator.calls == [[((0, 24), 30, None)], [(None, 24, None)]][layer]


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_of_nested_operators_the_inner_holds(kind: str) -> None:
    make, family = MODELS[kind]
    model = make()
    layers = family.layers(model)
    with perturbed(layers, family, Identity()):
        alone = predict(model)
    with perturbed(layers, family, Sinkhorn()):
        outer = predict(model)
        with perturbed(layers, family, Identity()):
            inner = predict(model)
        torch.testing.assert_close(predict(model), outer)
    torch.testing.assert_close(inner, alone)
    assert (inner - outer).abs().max() > 1e-4


def by_hand(attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
    """A Flux processor that attends without torch's scaled_dot_product_attention."""
    return hidden_states, encoder_hidden_states


@torch.no_grad()
def test_a_layer_whose_attention_never_comes_by_says_so() -> None:
    model = flux_transformer()
    model.transformer_blocks[1].attn.processor = by_hand
    before = snapshot(model)
    with (
        pytest.raises(UnsupportedModel, match=r"double\.1\.0: ASAG doesn't know .*FluxAttention .* 30 tokens"),
        perturbed(FluxTransformer().layers(model), FluxTransformer(), Softmax()),
    ):
        predict(model)
    assert snapshot(model) == before


def test_masked_calls_are_refused_unless_the_mask_does_nothing() -> None:
    query = normal(1, 2, 9, 8)

    def call(**given: Any) -> Tensor:
        with ReplacedAttention(Address("joint", 3, 0), 9, lambda query, key, value: value):
            return F.scaled_dot_product_attention(query, query, value=query, **given)

    for neutral in (None, torch.zeros(9, 9), torch.ones(9, 9, dtype=torch.bool)):
        assert torch.equal(call(attn_mask=neutral), query)
    for mask in (torch.eye(9), torch.eye(9, dtype=torch.bool)):
        with pytest.raises(UnsupportedModel, match=r"joint\.3\.0: its attention is masked"):
            call(attn_mask=mask)
    for given in ({"is_causal": True}, {"scale": 1.0}):
        with pytest.raises(UnsupportedModel, match="causal or scaled"):
            call(**given)


def test_only_calls_of_the_joint_length_are_replaced() -> None:
    query, other = normal(1, 2, 9, 8), normal(1, 2, 7, 8)
    with ReplacedAttention(Address("joint", 3, 0), 9, lambda query, key, value: value) as attention:
        for pair in ((query, other), (other, query), (other, other)):
            out = F.scaled_dot_product_attention(pair[0], pair[1], pair[1])
            with torch._C.DisableTorchFunction():
                torch.testing.assert_close(out, F.scaled_dot_product_attention(pair[0], pair[1], pair[1]))
        assert attention.replaced == 0
        assert torch.equal(F.scaled_dot_product_attention(query, query, query), query)
        assert attention.replaced == 1


@torch.no_grad()
def test_seg_blurs_the_queries_of_the_image_in_the_hosts_order() -> None:
    """SEG on an attention over the image alone, against its official formula: blurred queries, then SoftMax."""
    model = sd35_transformer()
    attention, tokens = model.transformer_blocks[1].attn2, normal(2, 24, 16)
    seen: list[Tensor] = []

    def spy(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        seen.extend((query, key, value))
        return value

    with ReplacedAttention(Address("joint", 1, 1), 24, spy):
        attention(tokens)
    query, key, value = seen
    taps = torch.exp(-0.5 * (torch.arange(-3, 4) / 1.0) ** 2)
    kernel = torch.outer(taps, taps) / taps.sum() ** 2
    planes = query.transpose(2, 3).reshape(-1, 1, HEIGHT, WIDTH)
    blurred = F.conv2d(F.pad(planes, (3, 3, 3, 3), mode="reflect"), kernel[None, None])
    blurred = blurred.reshape(2, 2, 8, 24).transpose(2, 3)
    out = F.scaled_dot_product_attention(blurred, key, value).transpose(1, 2).flatten(2)
    expected = attention.to_out[0](out)
    layers = [AttentionLayer(Address("joint", 1, 1), attention)]
    with perturbed(layers, Sd3Transformer(), QueryBlur(sigma=1.0), TokenGrid((2 * HEIGHT, 2 * WIDTH))):
        torch.testing.assert_close(attention(tokens), expected, rtol=1e-5, atol=1e-5)
    mean = query.mean(dim=2, keepdim=True).expand_as(query)
    out = F.scaled_dot_product_attention(mean, key, value).transpose(1, 2).flatten(2)
    with perturbed(layers, Sd3Transformer(), QueryBlur()):
        torch.testing.assert_close(attention(tokens), attention.to_out[0](out), rtol=1e-5, atol=1e-5)
