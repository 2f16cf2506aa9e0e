"""Where each of Forge's and Neo's transformers has its attention, on doubles of the models; what stands in for it."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asag.blocks import Address
from asag.models.base import TokenGrid, UnsupportedModel, family_of
from asag.models.forge_flux import ForgeFlux
from asag.models.forge_sd3 import ForgeSd3
from asag.models.host_attention import OVERRIDE, HostTransformer, SequenceLayer, StandIn
from asag.models.neo_image_alone import NeoAnima, NeoWan
from asag.models.neo_lumina import NeoLumina
from asag.models.neo_qwen import NeoQwen
from asag.models.neo_qwen21 import NeoQwen21
from asag.models.neo_single_stream import NeoErnie, NeoKrea
from asag.operators import make_operator
from tests.support import Softmax

HEADS, WIDTH, TEXT = 2, 8, 3
FAMILIES = [ForgeFlux(), ForgeSd3(), NeoAnima(), NeoWan(), NeoLumina(), NeoQwen(), NeoQwen21(), NeoErnie(), NeoKrea()]


def model_of(name: str, **parts: Any) -> Any:
    """The double of a host's model: a module of a class of that name, with these parts."""
    model = type(name, (nn.Module,), {})()
    for part, value in parts.items():
        setattr(model, part, value)
    return model


def module(**parts: Any) -> nn.Module:
    return model_of("Block", **parts)


def modules(attention: str, count: int) -> nn.ModuleList:
    return nn.ModuleList(module(**{attention: nn.Identity()}) for _ in range(count))


def sd3_block(attentions: int) -> nn.Module:
    return module(x_block=module(attn2=nn.Identity()) if attentions == 2 else module())


OTHERS = {name: nn.Identity() for name in ("final_layer", "head", "last", "norm_out", "proj_out")}
OTHERS |= {name: nn.Identity() for name in ("final_norm", "final_linear")}
FLUX = {"double_blocks": modules("attn", 2), "single_blocks": modules("attn", 3), **OTHERS}
SD3 = {"joint_blocks": nn.ModuleList(map(sd3_block, (2, 2, 1))), "patch_size": 2, **OTHERS}
ANIMA = {"blocks": modules("self_attn", 3), "patch_spatial": 2, **OTHERS}
WAN = {"blocks": modules("self_attn", 4), "patch_size": (1, 3, 2), **OTHERS}
LUMINA = {"layers": modules("attention", 3), "patch_size": 2, **OTHERS}
QWEN = {"transformer_blocks": modules("attn", 5), "patch_size": 2, **OTHERS}
ERNIE = {"layers": modules("self_attention", 3), "patch_size": 1, **OTHERS}
KREA = {"blocks": modules("attn", 3), "patch": 2, **OTHERS}


def places(part: str, attention: str, model: dict[str, Any], blocks: str, **more: Any) -> list[Any]:
    found = [getattr(block, attention) for block in model[blocks]]
    return [(f"{part}.{number}.0", each, more) for number, each in enumerate(found)]


def flux_places(patch: int) -> list[Any]:
    parts = (("double", FLUX["double_blocks"]), ("single", FLUX["single_blocks"]))
    return [(f"{part}.{i}.0", block, {"patch": patch}) for part, blocks in parts for i, block in enumerate(blocks)]


def sd3_places() -> list[Any]:
    numbers = ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0))
    return [(f"joint.{block}.{i}", SD3["joint_blocks"][block], {"patch": 2}) for block, i in numbers]


# Model, family, what its layers are, which parts of it are stages, and what auto means.
CASES: dict[str, tuple[Any, ...]] = {
    "Flux": (
        model_of("IntegratedFluxTransformer2DModel", **FLUX),
        *(ForgeFlux, flux_places(2), ("double_blocks", "single_blocks", "final_layer"), "single.0"),
    ),
    "Chroma in Neo": (
        model_of("IntegratedChromaTransformer2DModel", patch_size=1, **FLUX),
        *(ForgeFlux, flux_places(1), ("double_blocks", "single_blocks", "final_layer"), "single.0"),
    ),
    "SD3.5": (model_of("MMDiTX", **SD3), ForgeSd3, sd3_places(), ("joint_blocks", "final_layer"), "joint.1"),
    "Anima": (
        model_of("Anima", **ANIMA),
        *(NeoAnima, places("layer", "self_attn", ANIMA, "blocks", patch=2), ("blocks", "final_layer"), "layer.1"),
    ),
    "Wan": (
        model_of("WanModel", **WAN),
        *(NeoWan, places("layer", "self_attn", WAN, "blocks", patch=2), ("blocks", "head"), "layer.2"),
    ),
    "Lumina 2": (
        model_of("NextDiT", pad_tokens_multiple=None, **LUMINA),
        *(NeoLumina, places("layer", "attention", LUMINA, "layers", patch=2, text_multiple=1)),
        *(("layers", "final_layer"), "layer.1"),
    ),
    "Z-Image": (
        model_of("NextDiT", pad_tokens_multiple=32, **LUMINA),
        *(NeoLumina, places("layer", "attention", LUMINA, "layers", patch=2, text_multiple=32)),
        *(("layers", "final_layer"), "layer.1"),
    ),
    "Qwen-Image": (
        model_of("QwenImageTransformer2DModel", offload=False, **QWEN),
        *(NeoQwen, places("joint", "attn", QWEN, "transformer_blocks", patch=2)),
        *(("transformer_blocks", "norm_out", "proj_out"), "joint.2"),
    ),
    "Qwen-Image 2.1": (
        model_of("QwenImage21Transformer2DModel", **QWEN),
        *(NeoQwen21, places("layer", "attn", QWEN, "transformer_blocks", patch=1)),
        *(("transformer_blocks", "norm_out", "proj_out"), "layer.2"),
    ),
    "Ernie-Image": (
        model_of("ErnieImageModel", **ERNIE),
        *(NeoErnie, places("layer", "self_attention", ERNIE, "layers", patch=1)),
        *(("layers", "final_norm", "final_linear"), "layer.1"),
    ),
    "Krea 2": (
        model_of("SingleStreamDiT", **KREA),
        *(NeoKrea, places("layer", "attn", KREA, "blocks", patch=2), ("blocks", "last"), "layer.1"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_layers_and_stages_are_the_models(name: str) -> None:
    model, kind, expected, parts, auto = CASES[name]
    family = family_of(model, FAMILIES)
    assert type(family) is kind
    layers = family.layers(model)
    assert [(str(layer.address), layer.module) for layer in layers] == [each[:2] for each in expected]
    for layer, (_, _, more) in zip(layers, expected, strict=True):
        assert isinstance(layer, SequenceLayer)
        assert {"patch": layer.patch, "text_multiple": layer.text_multiple} == {"text_multiple": 1} | more
    stages: list[nn.Module] = []
    for part in parts:
        held = getattr(model, part)
        stages += list(held) if isinstance(held, nn.ModuleList) else [held]
    assert list(family.stages(model)) == stages
    assert str(family.default_blocks([layer.address for layer in family.layers(model)])) == auto
    assert family.experimental
    assert family.row_methods == (("unpatchify",) if kind is NeoLumina else ())


def test_a_model_of_another_name_is_of_no_family() -> None:
    with pytest.raises(UnsupportedModel, match=r"Other; allowed: Flux and Chroma"):
        family_of(model_of("Other", **QWEN), FAMILIES)
    with pytest.raises(UnsupportedModel, match="Offload switched off"):
        family_of(model_of("QwenImageTransformer2DModel", offload=True, **QWEN), FAMILIES)


# The attention function ----------------------------------------------------------------------------------------------

GRID, PATCH_TOKENS = (4, 6), 6


def attention_of(query: Tensor, key: Tensor, value: Tensor, weigh: Any = lambda weights: weights) -> Tensor:
    """Ordinary attention of (batch, tokens, heads * head_dim), with the map put through `weigh`."""
    query, key, value = (each.unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in (query, key, value))
    weights = torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1)
    return (weigh(weights) @ value).transpose(1, 2).flatten(2)


def evenly(image: slice) -> Any:
    """The definition: what an image query gives to the image's keys is spread evenly over them."""

    def weigh(weights: Tensor) -> Tensor:
        weights = weights.clone()
        weights[:, :, image, image] = weights[:, :, image, image].mean(-1, keepdim=True)
        return weights

    return weigh


FIRST, ALONE = slice(0, PATCH_TOKENS), slice(TEXT, TEXT + PATCH_TOKENS)
CALLED = {
    "Flux": (ForgeFlux(), "backend.nn.flux", "attention_function", ALONE),
    "SD3": (ForgeSd3(), "backend.nn.mmditx", "attention", ALONE),
    "Anima": (NeoAnima(), "backend.nn.anima", "attention_function", FIRST),
    "Wan": (NeoWan(), "backend.nn.wan", "attention_function", FIRST),
    "Lumina 2": (NeoLumina(), "backend.nn.lumina", "attention_function", ALONE),
    "Nunchaku's Z-Image": (NeoLumina(), "backend.nn.svdq", "attention_function", ALONE),
    "Qwen-Image": (NeoQwen(), "backend.nn.qwen", "attention_function", ALONE),
    "Nunchaku's Qwen-Image": (NeoQwen(), "backend.nn.svdq", "attention_function", ALONE),
    "Ernie-Image": (NeoErnie(), "backend.nn.ernie", "attention_function", FIRST),
    "Krea 2": (NeoKrea(), "backend.nn.krea", "attention_function", ALONE),
}


@pytest.mark.parametrize("name", CALLED)
def test_the_attention_that_a_layer_calls_is_weakened(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family, home, function, image = CALLED[name]
    host = ModuleType(home)
    setattr(host, function, lambda query, key, value, heads, mask=None, **_: attention_of(query, key, value))
    monkeypatch.setitem(sys.modules, home, host)
    token_grid = TokenGrid()
    token_grid.enter(torch.zeros(2, 4, *GRID), torch.zeros(2, TEXT, WIDTH))
    tokens = TEXT + PATCH_TOKENS
    given = torch.randn(3, 2, tokens, WIDTH, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def layer_itself(*parts: Tensor) -> Tensor:
        return getattr(host, function)(*parts, HEADS)

    layer = SequenceLayer(Address("layer", 0, 0), nn.Identity())
    weakened = family.replacement(layer, layer_itself, make_operator("uniform"), token_grid)(*given)
    torch.testing.assert_close(weakened, attention_of(*given, evenly(image)), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer_itself(*given), attention_of(*given), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("family", "tokens", "frames", "expected"),
    [
        (NeoKrea(), 9, 1, slice(3, 9)),
        (NeoKrea(), 8, 1, None),
        (NeoKrea(), 9, 2, slice(3, 9)),
        (NeoErnie(), 9, 1, slice(0, 6)),
        (NeoErnie(), 10, 1, None),
        (NeoAnima(), 6, 1, slice(0, 6)),
        (NeoAnima(), 5, 1, None),
        (NeoWan(), 12, 2, slice(0, 12)),
        (NeoWan(), 11, 2, None),
        (NeoQwen(), 9, 1, slice(3, 9)),
        (NeoQwen(), 8, 1, None),
    ],
)
def test_where_the_image_lies_in_a_sequence(
    family: HostTransformer, tokens: int, frames: int, expected: slice | None
) -> None:
    token_grid = TokenGrid()
    shape = (1, 4, *GRID) if frames == 1 else (1, 4, frames, *GRID)
    token_grid.enter(torch.zeros(shape), torch.zeros(1, 1, TEXT, WIDTH))
    assert family.image(SequenceLayer(Address("layer", 0, 0), nn.Identity()), token_grid, tokens) == expected


@pytest.mark.parametrize("order", [(1, 0), (0, 1), (2, 1, 0)], ids=["before", "after", "two before"])
@pytest.mark.parametrize("layers", [False, True], ids=["text", "text of several layers"])
def test_krea_finds_its_image_among_images_of_reference(order: tuple[int, ...], layers: bool) -> None:
    """Of June 2026 references follow, and since September they come first: the rotary embedding's frame tells."""
    token_grid, size = TokenGrid(), 6
    text = torch.zeros(1, TEXT, 12, WIDTH) if layers else torch.zeros(1, 1, TEXT, 12 * WIDTH)
    token_grid.enter(torch.zeros(1, 4, 1, *GRID), text)
    frames = torch.tensor([0] * TEXT + [frame for frame in order for _ in range(size)], dtype=torch.float64)
    # Of the pairs of channels the first turn by the frame, the others by the place in the picture.
    angles = torch.stack([frames, *[1.0 + torch.arange(len(frames), dtype=torch.float64)] * 3], dim=-1)
    rows = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], dim=-1).view(1, 1, -1, 4, 2, 2)
    start = TEXT + order.index(0) * size
    model, tokens = model_of("SingleStreamDiT", **KREA), len(frames)
    given: tuple[Tensor, ...] = (torch.zeros(1, tokens, WIDTH), rows)
    for layer in NeoKrea().layers(model):
        # The first one's answer holds for the others.
        assert NeoKrea().image(layer, token_grid, tokens, given) == slice(start, start + size)
        given = ()
    layer = NeoKrea().layers(model)[0]
    for given in ((), (rows,), (rows, rows[:, :, 1:])):
        with pytest.raises(UnsupportedModel, match=f"{tokens} tokens.*allowed: no reference images"):
            NeoKrea().image(layer, token_grid, tokens, given)
    other = SequenceLayer(Address("layer", 0, 0), nn.Identity())
    with pytest.raises(TypeError, match="a SequenceLayer; allowed: a KreaLayer"):
        NeoKrea().image(other, token_grid, tokens)


class Grids(Softmax):
    """Keeps which grids it was told."""

    def __init__(self) -> None:
        self.grids: list[tuple[int, int] | None] = []

    def joint(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        image: slice,
        grid: tuple[int, int] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        self.grids.append(grid)
        return super().joint(query, key, value, image, grid, mask)


@pytest.mark.parametrize(("frames", "grid"), [(1, (2, 3)), (2, None)])
def test_an_operator_is_told_the_grid_of_one_picture_and_of_no_frames(frames: int, grid: tuple[int, int]) -> None:
    """A blur over a grid would mix the frames' tokens."""
    token_grid, operator = TokenGrid(), Grids()
    token_grid.enter(torch.zeros(1, 4, frames, *GRID), torch.zeros(1, TEXT, WIDTH))
    parts = torch.randn(3, 1, HEADS, TEXT + frames * PATCH_TOKENS, 4)
    layer = SequenceLayer(Address("layer", 0, 0), nn.Identity())
    ForgeFlux().attend(layer, operator, token_grid, (), parts[0], parts[1], parts[2], None)
    assert operator.grids == [grid]


def test_calls_inside_another_extensions_attention_count() -> None:
    stand_in = StandIn(lambda query, key, value, mask: value)
    around = stand_in._around(lambda *given, **named: given[0])
    options = {OVERRIDE: lambda host, *given, **named: host(*given, **named)}
    parts = torch.randn(3, 1, 5, WIDTH)
    for count in (1, 2):
        torch.testing.assert_close(around(*parts, HEADS, transformer_options=options), parts[2], rtol=0, atol=0)
        assert stand_in.calls == count


def test_a_layer_of_another_kind_is_told() -> None:
    layer: Any = model_of("AttentionLayer", address=Address("layer", 1, 0))
    with pytest.raises(TypeError, match=r"layer\.1\.0: a AttentionLayer; allowed: a SequenceLayer"):
        NeoQwen().replacement(layer, lambda: None, make_operator("uniform"), TokenGrid())


@pytest.mark.parametrize("given", [(5, 5), (2, 5, 5), (2, 1, 5, 5), None])
@pytest.mark.parametrize("by_heads", [False, True])
def test_heads_and_masks_come_in_the_shapes_that_hosts_give(
    given: Any, by_heads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor | None:
        seen.append((query, key, value, mask))
        return value if len(seen) == 1 else None

    host = ModuleType("double_of_home")
    host.attention = lambda *given, **named: (given, named)
    monkeypatch.setitem(sys.modules, host.__name__, host)
    function = host.attention
    parts = list(torch.randn(3, 2, 5, WIDTH))
    split = [each.view(2, 5, HEADS, WIDTH // HEADS).transpose(1, 2) for each in parts]
    mask = None if given is None else torch.randn(given)
    named = {"skip_reshape": True, "skip_output_reshape": True} if by_heads else {}
    stand_in = StandIn(attend)
    with stand_in.at((("double_of_home", "attention"), ("double_of_home", "no_such"), ("no_such", "attention"))):
        first = host.attention(*(split if by_heads else parts), HEADS, mask, **named)
        again = host.attention(*(split if by_heads else parts), HEADS, mask, "another", **named)
    assert host.attention is function
    assert stand_in.calls == 1
    torch.testing.assert_close(first, split[2] if by_heads else parts[2], rtol=0, atol=0)
    for *found, found_mask in seen:
        for each, expected in zip(found, split, strict=True):
            torch.testing.assert_close(each, expected, rtol=0, atol=0)
        if mask is None:
            assert found_mask is None
        else:
            expected = mask.view(1, 1, 5, 5) if mask.ndim == 2 else mask.view(2, 1, 5, 5)
            torch.testing.assert_close(found_mask, expected, rtol=0, atol=0)
    # What isn't weakened goes to the host's function as it was given.
    (passed, passed_named), expected_parts = again, split if by_heads else parts
    assert all(one is other for one, other in zip(passed[:3], expected_parts, strict=True))
    assert (passed[3], passed[4] is mask, passed[5:], passed_named) == (HEADS, True, ("another",), named)
