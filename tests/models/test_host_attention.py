"""Transformers whose attention function is replaced while a layer runs, on a double of a host's module."""

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from asag.blocks import Address
from asag.models.base import TokenGrid, UnsupportedModel
from asag.models.forge_flux import ForgeFlux
from asag.models.forge_sd3 import ForgeSd3
from asag.models.host_attention import HostTransformer, SequenceLayer, StandIn, numbered
from asag.models.neo_image_alone import NeoAnima
from asag.models.neo_lumina import NeoLumina
from asag.models.neo_single_stream import NeoErnie, NeoKrea
from asag.operators import Sinkhorn
from asag.perturb import choose_layers, perturbed
from tests.support import Softmax, snapshot

HOME = "double_of_a_host"
TEXT, HEIGHT, WIDTH = 3, 6, 8


def attention_function(query, key, value, heads, mask=None, skip_reshape=False, **_):
    """The double of backend/attention.py's attention_pytorch."""
    if not skip_reshape:
        query, key, value = (
            tensor.flatten(2).unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (query, key, value)
        )
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)


class Block(nn.Module):
    """A double of a host's block: it attends over the joint sequence, and across to the text."""

    def __init__(self, skip_reshape: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.skip_reshape = skip_reshape

    def forward(self, x, mask=None):
        home = sys.modules[HOME]
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        if self.skip_reshape:
            query, key, value = (tensor.unflatten(-1, (2, -1)).transpose(1, 2) for tensor in (query, key, value))
        else:
            value = value.unflatten(-1, (2, -1))  # as SD3's
        out = x + home.attention_function(query, key, value, 2, mask, skip_reshape=self.skip_reshape)
        return out + 0.1 * home.attention_function(x, x[:, :TEXT], x[:, :TEXT], heads=2)


class Double(nn.Module):
    def __init__(self, skip_reshape: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(skip_reshape) for _ in range(3)])

    def forward(self, x, mask=None):
        for block in self.blocks:
            x = block(x, mask)
        return x


class DoublesFamily(HostTransformer):
    name = class_name = "Double"
    homes = ((HOME, "attention_function"), ("no_such_module", "attention_function"))

    def layers(self, model):
        return numbered("layer", model.blocks)

    def image(self, layer, token_grid, tokens, given=()):
        images = token_grid.image_tokens(layer.patch)
        return slice(TEXT, tokens) if tokens == TEXT + images else None


@pytest.fixture
def home(monkeypatch):
    module = ModuleType(HOME)
    module.attention_function = attention_function
    monkeypatch.setitem(sys.modules, HOME, module)
    return module


@pytest.fixture(params=[False, True], ids=["heads joined", "heads split"])
def model(request, home):
    torch.manual_seed(0)
    return Double(request.param).eval()


def given():
    token_grid = TokenGrid()
    token_grid.enter(torch.zeros(2, 4, HEIGHT, WIDTH), torch.zeros(2, TEXT, 16))
    x = torch.randn(2, TEXT + (HEIGHT // 2) * (WIDTH // 2), 16, generator=torch.Generator().manual_seed(1))
    return x, token_grid


def test_auto_counts_blocks_and_not_layers():
    class Uneven(DoublesFamily):
        def layers(self, model):
            places = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (3, 0), (4, 0)]
            return [SequenceLayer(Address("joint", *place), model) for place in places]

    addresses = [layer.address for layer in Uneven().layers(nn.Identity())]
    assert str(Uneven().default_blocks(addresses)) == "joint.2"


@torch.no_grad()
@pytest.mark.parametrize("mask", [None, torch.tensor([[0.0, -1.0, -2.0] + 12 * [0.0]]).expand(15, -1)])
def test_softmax_changes_nothing_and_sinkhorn_something(model, mask):
    family, (x, token_grid) = DoublesFamily(), given()
    expected = model(x, mask)
    layers = choose_layers(model, family, "all")
    with perturbed(layers, family, Softmax(), token_grid):
        torch.testing.assert_close(model(x, mask), expected)
    with perturbed(layers, family, Sinkhorn(), token_grid):
        assert (model(x, mask) - expected).abs().max() > 0.01
    torch.testing.assert_close(model(x, mask), expected, rtol=0, atol=0)


@torch.no_grad()
def test_other_layers_keep_the_hosts_attention(model):
    family, (x, token_grid) = DoublesFamily(), given()
    first = model.blocks[0](x)
    with perturbed(choose_layers(model, family, "layer.1"), family, Sinkhorn(), token_grid):
        torch.testing.assert_close(model.blocks[0](x), first, rtol=0, atol=0)
        assert sys.modules[HOME].attention_function is attention_function


def quantised(query, key, value, *others, **named):
    """The double of SageAttention, which takes queries and keys as small integers."""
    return attention_function((16 * query).round() / 16, (16 * key).round() / 16, value, *others, **named)


@torch.no_grad()
def test_only_the_chosen_layers_leave_the_hosts_kernel(model, home):
    """Neo binds one of its kernels to the name (--sage, --flash): all other layers, and text, keep to it."""
    family, (x, token_grid) = DoublesFamily(), given()

    def weakened(query, key, value, heads, mask=None, skip_reshape=False):
        if query.shape[-2] != key.shape[-2]:
            return quantised(query, key, value, heads, mask, skip_reshape)
        parts = [query, key, value]
        if not skip_reshape:
            parts = [each.flatten(2).unflatten(-1, (heads, -1)).transpose(1, 2) for each in parts]
        return Sinkhorn().joint(*parts, slice(TEXT, x.shape[1])).transpose(1, 2).flatten(2)

    expected = x
    for block, kernel in zip(model.blocks, (quantised, weakened, quantised), strict=True):
        home.attention_function = kernel
        expected = block(expected)
    home.attention_function = quantised
    with perturbed(choose_layers(model, family, "layer.1"), family, Sinkhorn(), token_grid):
        found = model(x)
    torch.testing.assert_close(found, expected)
    assert (found - model(x)).abs().max() > 0.01
    assert home.attention_function is quantised


def test_nothing_is_left_behind(model, home):
    family, (x, token_grid) = DoublesFamily(), given()
    before = snapshot(model)
    mask = torch.zeros(15, 15)
    mask[7, 8] = -1.0
    layers = choose_layers(model, family, "auto")
    with (
        pytest.raises(UnsupportedModel, match=r"layer\.1\.0: mask"),
        perturbed(layers, family, Sinkhorn(), token_grid),
    ):
        model(x, mask)
    assert snapshot(model) == before
    assert home.attention_function is attention_function


def test_a_layer_that_wasnt_perturbed_is_an_error(model):
    family, (x, token_grid) = DoublesFamily(), given()
    with (
        pytest.raises(
            UnsupportedModel,
            match=r"layer\.0\.0: ASAG doesn't know the attention that .*\.Block computes here.*allowed: double_of",
        ),
        perturbed(choose_layers(model, family, "layer.0"), family, Sinkhorn(), token_grid),
    ):
        model(x[:, :-1])


@pytest.mark.parametrize("split", [True, False], ids=["heads split", "heads joined"])
def test_a_scale_and_fewer_heads_of_keys_are_as_in_sdpa(split):
    generator = torch.Generator().manual_seed(2)
    query, key, value = (torch.randn(2, heads, 12, 6, generator=generator) for heads in (4, 2, 2))
    # Two heads of queries share one of keys. SDPA itself has enable_gqa only from torch 2.5 on.
    shared = (each.repeat_interleave(2, dim=1) for each in (key, value))
    expected = F.scaled_dot_product_attention(query, *shared, scale=0.7)

    def host(*args, **named):
        raise AssertionError("the host's function ran")

    attention = StandIn(lambda query, key, value, mask: F.scaled_dot_product_attention(query, key, value, mask))
    given = (query, key, value) if split else (each.transpose(1, 2).flatten(2) for each in (query, key, value))
    more = {"skip_reshape": split, "scale": 0.7, "enable_gqa": True}
    out = attention._around(host)(*given, 4, **more)
    torch.testing.assert_close(out, expected.transpose(1, 2).flatten(2))
    assert attention.calls == 1


def hosts_attention(query, key, value, heads, mask=None, transformer_options=None, **others):
    """The double of Neo's, since September 2026: an attention in transformer_options stands for it."""
    others["transformer_options"] = transformer_options
    if "optimized_attention_override" in (transformer_options or {}):
        return transformer_options["optimized_attention_override"](
            attention_function, query, key, value, heads, mask, **others
        )
    return attention_function(query, key, value, heads, mask, **others)


OVERRIDES = {
    # What it adds stays, around the weakened attention.
    "calls the host's": lambda host, *given, **named: 1.0 + host(*given, **named),
    # It computes its own, faster one: the weakened one stands for it.
    "has its own": lambda host, *given, **named: torch.full_like(given[0], 5.0),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", OVERRIDES)
def test_attention_that_an_extension_put_there_stays_around_ours(kind, home):
    family, (x, token_grid) = DoublesFamily(), given()
    home.attention_function = hosts_attention
    options = {"optimized_attention_override": OVERRIDES[kind]}

    class Layer(nn.Module):
        def forward(self, x):
            own = home.attention_function(x, x, x, heads=2, transformer_options=options)
            return own, home.attention_function(x, x[:, :TEXT], x[:, :TEXT], heads=2, transformer_options=options)

    layer = Layer()
    before = layer(x)
    found = family.replacement(SequenceLayer(Address("layer", 0, 0), layer), layer.forward, Sinkhorn(), token_grid)(x)
    heads = x.unflatten(-1, (2, -1)).transpose(1, 2)
    weak = Sinkhorn().joint(heads, heads, heads, slice(TEXT, x.shape[1])).transpose(1, 2).flatten(2)
    torch.testing.assert_close(found[0], weak + 1.0 if kind == "calls the host's" else weak)
    torch.testing.assert_close(found[1], before[1], rtol=0, atol=0)


def placed(family, patch=2, multiple=1, number=0, frames=1, tokens=None, text=TEXT):
    """Where a family looks for image tokens, of latents 6 x 8 (or odd), in a sequence."""
    token_grid = TokenGrid()
    shape = (2, 4, 5, 7) if frames == 1 else (2, 4, frames, 5, 7)
    token_grid.enter(torch.zeros(shape), torch.zeros(2, text, 16))
    layer = SequenceLayer(Address("layer", 0, number), nn.Identity(), patch, multiple)
    return family.image(layer, token_grid, tokens)


@pytest.mark.parametrize(
    ("family", "details", "expected"),
    [
        (ForgeFlux(), {"tokens": 15}, slice(3, 15)),
        (ForgeFlux(), {"tokens": 20}, slice(3, 15)),  # a reference image follows
        (ForgeFlux(), {"tokens": 12}, None),
        (ForgeFlux(), {"tokens": 38, "patch": 1}, slice(3, 38)),
        (ForgeSd3(), {"tokens": 15}, slice(3, 15)),
        (ForgeSd3(), {"tokens": 12}, None),
        (ForgeSd3(), {"tokens": 12, "number": 1}, slice(0, 12)),
        (ForgeSd3(), {"tokens": 15, "number": 1}, None),
        (NeoLumina(), {"tokens": 15}, slice(3, 15)),
        (NeoLumina(), {"tokens": 64, "multiple": 32}, slice(32, 44)),
        (NeoErnie(), {"tokens": 15}, slice(0, 12)),
        (NeoErnie(), {"tokens": 16}, None),
        (NeoKrea(), {"tokens": 15, "frames": 1}, slice(3, 15)),
        (NeoAnima(), {"tokens": 12}, slice(0, 12)),
        (NeoAnima(), {"tokens": 36, "frames": 2}, slice(0, 24)),
    ],
)
def test_where_the_image_tokens_lie(family, details, expected):
    assert placed(family, **details) == expected
