"""Neo's Nunchaku models, Qwen-Image 2.1 and Wan, on doubles of their modules that call attention as those do."""

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from asag.models.base import TokenGrid, UnsupportedModel, family_of
from asag.models.neo_image_alone import NeoWan
from asag.models.neo_lumina import NeoLumina
from asag.models.neo_qwen import NeoQwen
from asag.models.neo_qwen21 import NeoQwen21
from asag.operators import METHODS, Sinkhorn, make_operator
from asag.perturb import branching, choose_layers, perturbed
from tests.support import Softmax
from tests.test_chosen_heads import HeadByHead

WIDTH, HEADS, TEXT, ROWS = 16, 2, 5, 3
GRID = (4, 6)


def attention_function(query, key, value, heads, mask=None, skip_reshape=False, **_):
    """The double of backend/attention.py's attention_pytorch."""
    if not skip_reshape:
        query, key, value = (tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)


@pytest.fixture
def homes(monkeypatch):
    """Doubles of Neo's modules, each with the host's attention function under its own name."""
    for name in ("qwen", "qwen21", "svdq", "lumina", "wan"):
        module = ModuleType(f"backend.nn.{name}")
        module.attention_function = attention_function
        monkeypatch.setitem(sys.modules, module.__name__, module)


def lively(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) / max(parameter.shape[-1], 1) ** 0.5 * 1.5)
    return model.eval().double()


# Doubles -----------------------------------------------------------------------------------------------------------


class Joint(nn.Module):
    """Text and image in one call, as Attention of svdq.py and NunchakuZImageAttention have it."""

    def __init__(self, home):
        super().__init__()
        self.qkv, self.home = nn.Linear(WIDTH, 3 * WIDTH), home

    def forward(self, x):
        return x + sys.modules[self.home].attention_function(*self.qkv(x).chunk(3, dim=-1), HEADS)


class Block(nn.Module):
    def __init__(self, attention, name):
        super().__init__()
        setattr(self, name, attention)
        self.name = name

    def forward(self, x, *others):
        return getattr(self, self.name)(x, *others)


class JointModel(nn.Module):
    """Text tokens first, then the image's in patches of 2 x 2."""

    blocks_name, attention_name, home = "transformer_blocks", "attn", "backend.nn.svdq"
    patch_size = 2

    def __init__(self):
        super().__init__()
        blocks = [Block(Joint(self.home), self.attention_name) for _ in range(3)]
        setattr(self, self.blocks_name, nn.ModuleList(blocks))
        self.norm_out = self.final_layer = self.proj_out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, context):
        images = x[:, :, ::2, ::2].flatten(2).transpose(1, 2)
        tokens = torch.cat([context, images], dim=1)
        for block in getattr(self, self.blocks_name):
            tokens = block(tokens)
        return self.proj_out(tokens)[:, TEXT:]


class QwenImageTransformer2DModel(JointModel):
    pass


class NunchakuQwenImageTransformer2DModel(QwenImageTransformer2DModel):
    pass


class NextDiT(JointModel):
    blocks_name, attention_name = "layers", "attention"
    pad_tokens_multiple = None


class NunchakuZImage2DModel(NextDiT):
    def unpatchify(self, x):
        return x


class Segmented(nn.Module):
    """Qwen-Image 2.1's: the host's function once for each segment, over the tokens up to the segment's end."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x, attend):
        return x + attend(*(each.unflatten(-1, (HEADS, -1)) for each in self.qkv(x).chunk(3, dim=-1)))


class QwenImage21Transformer2DModel(nn.Module):
    """Text, a reference image as large as the image, text again, the image: a token for each latent pixel."""

    def __init__(self):
        super().__init__()
        self.transformer_blocks = nn.ModuleList([Block(Segmented(), "attn") for _ in range(3)])
        self.norm_out, self.proj_out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x, context):
        image = x.flatten(2).transpose(1, 2)
        parts = [context[:, :2], image.flip(1), context[:, 2:], image]
        ends = torch.tensor([each.shape[1] for each in parts]).cumsum(0).tolist()
        tokens = torch.cat(parts, dim=1)

        def attend(query, key, value):
            outs = []
            for start, end, is_text in zip([0, *ends], ends, (True, False, True, False), strict=False):
                mask = torch.ones(end - start, end, dtype=torch.bool).tril(start) if is_text else None
                each = query[:, start:end].flatten(2), key[:, :end].flatten(2), value[:, :end].flatten(2)
                outs.append(sys.modules["backend.nn.qwen21"].attention_function(*each, HEADS, mask=mask))
            return torch.cat(outs, dim=1)

        for block in self.transformer_blocks:
            tokens = block(tokens, attend)
        return self.proj_out(self.norm_out(tokens[:, ends[-2] :]))


MODELS = {
    "Nunchaku's Qwen-Image": (NunchakuQwenImageTransformer2DModel, NeoQwen, "joint"),
    "Nunchaku's Z-Image": (NunchakuZImage2DModel, NeoLumina, "layer"),
    "Qwen-Image 2.1": (QwenImage21Transformer2DModel, NeoQwen21, "layer"),
}


@pytest.fixture(params=MODELS)
def case(request, homes):
    model, family, part = MODELS[request.param]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, WIDTH, *GRID, generator=generator, dtype=torch.float64)
    context = torch.randn(ROWS, TEXT, WIDTH, generator=generator, dtype=torch.float64)
    token_grid = TokenGrid()
    token_grid.enter(x, context)
    built = lively(model())
    found = family_of(built, [NeoLumina(), NeoQwen(), NeoQwen21(), NeoWan()])
    assert isinstance(found, family)
    return built, found, part, (x, context), token_grid


# Tests -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_softmax_gives_no_delta_and_sinkhorn_one(case):
    model, family, part, given, token_grid = case
    plain = model(*given)
    assert str(family.default_blocks([layer.address for layer in family.layers(model)])) == f"{part}.1"
    with perturbed(choose_layers(model, family, "all"), family, Softmax(), token_grid):
        torch.testing.assert_close(model(*given), plain, rtol=1e-10, atol=1e-10)
    with perturbed(choose_layers(model, family, "auto"), family, Sinkhorn(), token_grid):
        assert (model(*given) - plain).abs().max() > 1e-3
    torch.testing.assert_close(model(*given), plain, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_branch_is_a_whole_pass(case, method, block):
    model, family, part, given, token_grid = case
    operator, layers = make_operator(method), choose_layers(model, family, f"{part}.{block}")
    plain = model(*given)
    with perturbed(layers, family, operator, token_grid):
        weakened = model(*given)
    with branching(model, layers, family, operator, token_grid, slice(1, ROWS), ROWS) as branch:
        own, copies = branch.split(model(*given))
    torch.testing.assert_close(own, plain, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(copies, weakened[1:], rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_heads_are_weakened_head_by_head(case):
    """The doubles don't say how many heads they have, so that only the running layer tells what is missing."""
    model, family, part, given, token_grid = case
    with perturbed(choose_layers(model, family, f"{part}.1"), family, HeadByHead(Sinkhorn(), 1), token_grid):
        expected = model(*given)
    with perturbed(choose_layers(model, family, f"{part}.1:h1"), family, Sinkhorn(), token_grid):
        torch.testing.assert_close(model(*given), expected, rtol=1e-10, atol=1e-10)
    missing = choose_layers(model, family, f"{part}.1:h{HEADS}")
    error = pytest.raises(UnsupportedModel, match=rf"'{part}\.1\.0:h{HEADS}'; .* has: heads 0 to {HEADS - 1}$")
    with error, perturbed(missing, family, Sinkhorn(), token_grid):
        model(*given)


@torch.no_grad()
def test_the_images_attention_alone_is_weakened_in_segments(homes):
    """Layer by layer against the definition: what an image query gives to image keys is spread evenly over them."""
    model = lively(QwenImage21Transformer2DModel())
    images, token_grid = GRID[0] * GRID[1], TokenGrid()
    x, context = torch.randn(1, WIDTH, *GRID).double(), torch.randn(1, TEXT, WIDTH).double()
    token_grid.enter(x, context)
    seen = []
    family = NeoQwen21()
    layers = choose_layers(model, family, "layer.1")
    handle = model.transformer_blocks[1].attn.register_forward_hook(lambda module, args, out: seen.append((args, out)))
    model(x, context)
    with perturbed(layers, family, make_operator("uniform"), token_grid):
        model(x, context)
    handle.remove()
    ((tokens, _), plain), (_, weakened) = seen
    query, key, value = (
        each.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for each in model.transformer_blocks[1].attn.qkv(tokens).chunk(3, dim=-1)
    )
    weights = torch.softmax(query[:, :, -images:] @ key.mT / (WIDTH / HEADS) ** 0.5, dim=-1)
    weights[..., -images:] = weights[..., -images:].mean(-1, keepdim=True)
    expected = (weights @ value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(weakened[:, -images:] - tokens[:, -images:], expected)
    torch.testing.assert_close(weakened[:, :-images], plain[:, :-images], rtol=0, atol=0)


def test_nunchakus_offload_is_refused_since_it_runs_other_blocks(homes):
    """svdq.py: offload_manager.get_block gives one of two buffers that the weights are copied to."""
    model = NunchakuQwenImageTransformer2DModel()
    model.offload = True
    with pytest.raises(
        UnsupportedModel, match=r"Nunchaku.* runs its blocks in buffers.*allowed: .*Offload switched off"
    ):
        family_of(model, [NeoLumina(), NeoQwen()])


class WanSelfAttention(nn.Module):
    def forward(self, x):
        return sys.modules["backend.nn.wan"].attention(x, x, x, HEADS)


class WanModel(nn.Module):
    patch_size = (1, 2, 2)

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(WanSelfAttention(), "self_attn")])
        self.head = nn.Identity()

    def forward(self, x):
        return self.blocks[0](x)


def test_wan_with_radial_attention_is_told_what_its_attention_is(homes):
    """Neo's extension puts another function in the place of backend/nn/wan.py's `attention`."""
    home, model, token_grid = sys.modules["backend.nn.wan"], WanModel(), TokenGrid()
    token_grid.enter(torch.zeros(1, 4, 1, *GRID), torch.zeros(1, 3, WIDTH))
    x, family = torch.randn(1, 6, WIDTH), NeoWan()
    home.attention = lambda *args, **kwargs: home.attention_function(*args, **kwargs)
    layers = choose_layers(model, family, "layer.0")
    with perturbed(layers, family, Softmax(), token_grid):
        torch.testing.assert_close(model(x), attention_function(x, x, x, HEADS))
    home.attention = lambda query, *args, **kwargs: query  # a sparse kernel of its own
    with (
        pytest.raises(
            UnsupportedModel,
            match=r"layer\.0\.0: ASAG doesn't know the attention that .*WanSelfAttention computes here.*"
            r"allowed: backend\.nn\.wan\.attention_function, .*RadialAttention Integrated .*switch it off",
        ),
        perturbed(layers, family, Sinkhorn(), token_grid),
    ):
        model(x)
