"""Rows that branch off inside one forward pass, against a second pass on those rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asag.blocks import Address
from asag.branch import RowBranch
from asag.models.base import AttentionLayer, Family, TokenGrid
from asag.models.diffusers_mmdit import FluxTransformer, Sd3Transformer
from asag.models.diffusers_unet import DiffusersUnet
from asag.models.ldm_unet import LdmUnet
from asag.operators import Identity, Sinkhorn
from asag.perturb import branching, choose_layers, perturbed, slice_rows
from tests import tiny_diffusers
from tests.models.test_ldm_unet import SD15, SDXL, build
from tests.support import Softmax, snapshot
from tests.tiny_diffusers import TEXT_TOKENS, TEXT_WIDTH, normal

TOTAL = 3


@dataclass
class Case:
    """A model, what it is called with, and the blocks to perturb."""

    model: nn.Module
    family: Family
    given: dict[str, Any]
    token_grid: TokenGrid
    blocks: tuple[str, ...]

    def __call__(self, **given: Any) -> Tensor:
        out = self.model(**(given or self.given))
        return out if isinstance(out, Tensor) else out[0]


def ldm(layout: dict, blocks: tuple[str, ...], depth: int = 1) -> Case:
    text = normal(TOTAL, 7, 24, seed=3)
    times = torch.tensor([500.0, 20.0, 20.0])
    given = {"x": normal(TOTAL, 4, 16, 24), "timesteps": times, "context": [text] * depth if depth > 1 else text}
    return Case(build(layout, depth), LdmUnet(), given, TokenGrid((16, 24)), blocks)


def diffusers_unet(model: nn.Module, blocks: tuple[str, ...]) -> Case:
    given: dict[str, Any] = {"sample": normal(TOTAL, 4, 32, 32), "timestep": 500}
    given["encoder_hidden_states"] = normal(TOTAL, TEXT_TOKENS, TEXT_WIDTH, seed=3)
    if model.config.addition_embed_type:
        times = 100 * normal(TOTAL, 6).abs()
        given["added_cond_kwargs"] = {"text_embeds": normal(TOTAL, TEXT_WIDTH), "time_ids": times}
    else:
        sizes = [*[(8, 32)] * 3, *[(8, 16)] * 3, (8, 8), *[(16, 8)] * 2, *[(16, 4)] * 3]
        residuals = [normal(TOTAL, width, size, size, seed=size) for width, size in sizes]
        given["down_block_additional_residuals"] = residuals
        given["mid_block_additional_residual"] = normal(TOTAL, 16, 4, 4, seed=9)
    return in_float64(Case(model, DiffusersUnet(), given, TokenGrid((32, 32)), blocks))


def transformer(model: nn.Module, family: Family, blocks: tuple[str, ...]) -> Case:
    given: dict[str, Any] = {
        "encoder_hidden_states": normal(TOTAL, TEXT_TOKENS, TEXT_WIDTH, seed=3),
        "pooled_projections": normal(TOTAL, TEXT_WIDTH, seed=4),
        "timestep": torch.tensor([0.5] * TOTAL),
    }
    if isinstance(family, Sd3Transformer):
        given["hidden_states"] = normal(TOTAL, 4, 8, 12)
        return in_float64(Case(model, family, given, TokenGrid((8, 12)), blocks))
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    ids = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1)
    given |= {"hidden_states": normal(TOTAL, 24, 16), "img_ids": ids, "txt_ids": torch.zeros(TEXT_TOKENS, 3)}
    return in_float64(Case(model, family, given, TokenGrid((4, 6)), blocks))


def in_float64(case: Case) -> Case:
    case.model.double()
    case.given = {name: _double(value) for name, value in case.given.items()}
    return case


def _double(given: Any) -> Any:
    if isinstance(given, dict):
        return {name: _double(value) for name, value in given.items()}
    if isinstance(given, list):
        return [_double(value) for value in given]
    return given.double() if isinstance(given, Tensor) and given.is_floating_point() else given


UNET_BLOCKS = ("mid", "out.5", "in.4, mid", "mid, out.3-5", "in.1", "out.11")
MODELS: dict[str, Callable[[], Case]] = {
    "ldm-sd15": lambda: ldm(SD15, UNET_BLOCKS),
    "ldm-sdxl": lambda: ldm(SDXL, ("mid", "mid.1", "out.0.1"), depth=2),
    "diffusers-sd15-controlnet": lambda: diffusers_unet(tiny_diffusers.sd15_unet(), UNET_BLOCKS),
    "diffusers-sdxl": lambda: diffusers_unet(tiny_diffusers.sdxl_unet(), ("mid", "mid.1", "out.0")),
    "sd3": lambda: transformer(tiny_diffusers.sd3_transformer(), Sd3Transformer(), ("auto", "joint.0", "joint.3")),
    "sd3.5": lambda: transformer(tiny_diffusers.sd35_transformer(), Sd3Transformer(), ("auto", "joint.1.1")),
    "flux": lambda: transformer(
        tiny_diffusers.flux_transformer(), FluxTransformer(), ("auto", "double.0", "single.2", "double.1,single.0")
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest) -> Case:
    return MODELS[request.param]()


def assert_close(out: Tensor, expected: Tensor) -> None:
    """As a whole: rounding of single values grows through a random network. float64 tells it from an error."""
    bound = 1e-11 if out.dtype == torch.float64 else 1e-4
    assert float((out - expected).norm() / expected.norm()) < bound


def branch_of(case: Case, blocks: str, operator: Any, rows: slice) -> tuple[Tensor, Tensor]:
    layers = choose_layers(case.model, case.family, blocks)
    with branching(case.model, layers, case.family, operator, case.token_grid, rows, TOTAL) as branch:
        return branch.split(case())


@torch.no_grad()
@pytest.mark.parametrize(
    ("rows", "operator"), [(slice(1, 3), Sinkhorn()), (slice(0, 1), Identity()), (slice(0, 3), Sinkhorn())]
)
def test_rows_are_those_of_two_passes(case: Case, rows: slice, operator: Any) -> None:
    before, plain = snapshot(case.model), case()
    for blocks in case.blocks:
        with perturbed(choose_layers(case.model, case.family, blocks), case.family, operator, case.token_grid):
            weakened = case(**slice_rows(case.given, rows, TOTAL))
        assert (weakened - plain[rows]).norm() > 1e-3 * plain.norm(), blocks
        own, other = branch_of(case, blocks, operator, rows)
        assert_close(own, plain)
        assert_close(other, weakened)
        assert type(own) is type(other) is Tensor
    assert snapshot(case.model) == before


@torch.no_grad()
def test_softmax_on_the_copies_gives_them_the_rows_own_prediction(case: Case) -> None:
    own, other = branch_of(case, case.blocks[0], Softmax(), slice(1, 3))
    assert_close(other, own[1:])


@torch.no_grad()
def test_what_precedes_the_branch_runs_once_on_its_own_rows(case: Case) -> None:
    rows_seen: list[int] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows_seen.append(_rows(args, kwargs))

    stages = case.family.stages(case.model)
    layers = choose_layers(case.model, case.family, case.blocks[0])
    with branching(case.model, layers, case.family, Sinkhorn(), case.token_grid, slice(1, 3), TOTAL):
        handles = [stage.register_forward_pre_hook(note, with_kwargs=True) for stage in stages]
        case()
    for handle in handles:
        handle.remove()
    assert len(rows_seen) == len(stages)
    assert set(rows_seen) == {TOTAL, TOTAL + 2}
    assert rows_seen == sorted(rows_seen)


def _rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    return (args[0] if args else kwargs["hidden_states"]).shape[0]


@torch.no_grad()
def test_an_error_inside_leaves_the_model_as_it_was(case: Case) -> None:
    before = snapshot(case.model)

    class Failing(Softmax):
        def plain(self, *given: Any) -> Tensor:
            raise ZeroDivisionError

        joint = plain

    with pytest.raises(ZeroDivisionError):
        branch_of(case, case.blocks[0], Failing(), slice(1, 3))
    assert snapshot(case.model) == before
    assert type(case()) is Tensor


def test_a_model_that_never_comes_by_says_so() -> None:
    branch = RowBranch([nn.Identity()], 0, slice(0, 1), 2)
    with branch.open(), pytest.raises(RuntimeError, match="2 rows came out"):
        branch.split(torch.zeros(2, 4))


@torch.no_grad()
def test_operations_between_stages_copy_what_lacks_the_rows() -> None:
    stages = [nn.Identity(), nn.Identity()]
    branch = RowBranch(stages, 1, slice(1, 2), 2)
    skip, residual = normal(2, 3, 4, seed=1), normal(2, 3, 4, seed=2)
    with branch.open():
        first = stages[0](skip)
        hidden = stages[1](first)
        hidden += residual
        own, other = branch.split(torch.cat([hidden, first], dim=1).view(2, 6, 4))
    torch.testing.assert_close(own, torch.cat([skip + residual, skip], dim=1))
    torch.testing.assert_close(other, own[1:])


def test_the_host_is_told_which_rows_are_which() -> None:
    told: list[list[int]] = []
    stage = nn.Identity()
    branch = RowBranch([stage], 0, slice(1, 3), 3, lambda rows: told.append(list(rows)))
    with branch.open():
        stage(torch.zeros(3, 2, 2))
    assert told == [[0, 1, 2, 1, 2], [0, 1, 2]]


def test_lists_of_an_entry_for_each_row_grow_with_the_rows() -> None:
    stage = nn.Identity()
    branch = RowBranch([stage], 0, slice(1, 3), 3)
    sizes = branch.growing(lambda x, sizes, others=None: (sizes, others))
    with branch.open():
        assert sizes(None, [1, 2, 3]) == ([1, 2, 3], None)
        stage(torch.zeros(3, 2, 2))
        assert sizes(None, [1, 2, 3], others=[7]) == ([1, 2, 3, 2, 3], [7])


@dataclass
class Modulation:
    """The double of what Chroma gives its blocks."""

    shift: Tensor
    rows: int = 2


class Shifted(nn.Module):
    """The double of a block that gets its modulation in a dataclass, inside a tuple."""

    def forward(self, x: Tensor, vec: tuple[Modulation, ...]) -> Tensor:
        return x + vec[0].shift


def test_modulations_in_dataclasses_are_taken_along() -> None:
    block, token_grid = Shifted(), TokenGrid()

    class OneBlock(LdmUnet):
        """The double of a family of one block, which is perturbed by adding 1."""

        def stages(self, model: nn.Module) -> list[nn.Module]:
            return [block]

        def replacement(self, layer: Any, original: Any, operator: Any, token_grid: TokenGrid) -> Any:
            return lambda x, vec: original(x, vec) + 1

    layers = [AttentionLayer(Address("double", 0, 0), block)]
    x, vec = normal(2, 3, 4), (Modulation(normal(2, 1, 4, seed=1)),)
    with branching(block, layers, OneBlock(), Softmax(), token_grid, slice(1, 2), 2) as branch:
        own, other = branch.split(block(x, vec))
    torch.testing.assert_close(own, x + vec[0].shift)
    torch.testing.assert_close(other, own[1:] + 1)


class Twofold(nn.Module):
    """The double of a block with two layers in one module, as Forge's SD3.5 has them."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class TwofoldFamily:
    row_methods: tuple[str, ...] = ()

    def stages(self, model: Twofold) -> list[nn.Module]:
        return [model.block]

    def replacement(self, layer: AttentionLayer, original: Any, operator: Any, token_grid: TokenGrid) -> Any:
        return lambda x: original(x) * (layer.address.layer + 2)


def test_two_layers_in_one_module_are_both_perturbed() -> None:
    model, x = Twofold(), normal(TOTAL, 4)
    layers = [AttentionLayer(Address("joint", 0, index), model.block) for index in range(2)]
    family, rows = TwofoldFamily(), slice(1, 3)
    with branching(model, layers, family, Identity(), TokenGrid(), rows, TOTAL) as branch:
        own, copies = branch.split(model(x))
    torch.testing.assert_close(own, model(x))
    torch.testing.assert_close(copies, 6 * model(x)[rows])
