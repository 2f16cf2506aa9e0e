"""Some heads of a layer weakened: against SoftMax and plan head by head in float64, in models, and what is kept."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asag.blended import Blended
from asag.blocks import Address, BlocksError, block_name
from asag.chosen_heads import ChosenHeads, LayerHeads, OnHeads, alignment
from asag.heads import Heads
from asag.lab.bench.fake_cuda import FakeCuda
from asag.models.base import head_count
from asag.operators import METHODS, Operator, make_operator
from asag.perturb import choose_layers, perturbed
from tests.test_branch import MODELS, assert_close, branch_of
from tests.test_operators import dense_map, double_sequence, operator_of

EXACT = {"rtol": 0, "atol": 1e-12}
MID = Address("mid", 0, 0)


def on(operator: Operator, *numbers: int) -> OnHeads:
    return OnHeads(operator, LayerHeads(MID, Heads(tuple((number, number) for number in numbers))))


@pytest.mark.parametrize("numbers", [(0,), (2,), (0, 2), (1, 0), (0, 1, 2)])
@pytest.mark.parametrize("method", METHODS)
def test_plain_is_the_plan_in_the_chosen_heads_and_softmax_in_the_others(method: str, numbers: tuple[int, ...]) -> None:
    query, key, value = double_sequence(text=0)
    maps = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(8), dim=-1)
    plan = dense_map(method, query, key, (3, 4))
    for number in numbers:
        maps[:, number] = plan[:, number]
    operator = on(operator_of(method), *numbers)
    torch.testing.assert_close(operator.plain(query, key, value, (3, 4)), maps @ value, **EXACT)
    rows = operator.map_rows(query, key, torch.tensor([0, 7]), (3, 4))
    torch.testing.assert_close(rows, maps[:, :, [0, 7]], **EXACT)


@pytest.mark.parametrize("by_head", [False, True])
@pytest.mark.parametrize("image", [slice(5, 17), slice(0, 12), slice(2, 14)])
def test_joint_with_part_of_the_plan_in_two_heads(image: slice, by_head: bool) -> None:
    query, key, value = double_sequence(text=5)
    text_key = 0 if image.start else image.stop
    mask = torch.zeros(1, 3 if by_head else 1, 17, 17, dtype=torch.float64)
    mask[..., text_key] = torch.tensor([-1.0, -2.0, -3.0])[: mask.shape[1], None]
    maps = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(8) + mask, dim=-1)
    mass = maps[:, :, image, image].sum(-1, keepdim=True)
    plan = mass * dense_map("asag", query[:, :, image], key[:, :, image], (3, 4))
    for number in (0, 2):
        maps[:, number, image, image] = 0.4 * maps[:, number, image, image] + 0.6 * plan[:, number]
    out = on(Blended(operator_of("asag"), 0.6), 0, 2).joint(query, key, value, image, (3, 4), mask)
    torch.testing.assert_close(out, maps @ value, **EXACT)


def test_the_aligned_heads_are_those_of_the_largest_mean_cosine() -> None:
    generator = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(2, 8, 12, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    for number, share in enumerate((0.0, 0.9, 0.1, 0.3, -0.8, 0.7, 0.2, 0.5)):
        key[:, number] = share * query[:, number] + 0.3 * key[:, number]
    key[1] = key[1].roll(1, dims=0) * torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)[:, None, None]
    cosines = torch.zeros(2, 8, dtype=torch.float64)
    for image in range(2):
        for number in range(8):
            for token in range(12):
                one, other = query[image, number, token], key[image, number, token]
                cosines[image, number] += one @ other / one.norm() / other.norm() / 12
    torch.testing.assert_close(alignment(query, key), cosines, **EXACT)
    torch.testing.assert_close(alignment(query, torch.cat([key, -key[:, :, :4]], dim=2)), cosines, **EXACT)
    best = [tuple(sorted(row.topk(2).indices.tolist())) for row in cosines]
    assert best[0] == (1, 5) != best[1]
    heads = LayerHeads(MID, Heads())
    assert heads.told() == []
    out = OnHeads(make_operator("asag"), heads).plain(query, key, value)
    for image, numbers in enumerate(best):
        alone = (each[image : image + 1] for each in (query, key, value))
        expected = on(make_operator("asag"), *numbers).plain(*alone)
        torch.testing.assert_close(out[image : image + 1], expected, **EXACT)
    assert heads.told() == best


@pytest.mark.parametrize("by_head", [False, True])
def test_a_pictures_aligned_heads_do_not_depend_on_its_neighbours(by_head: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    query, key, value = (torch.randn(3, 8, 17, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    mask = torch.zeros(1, 8 if by_head else 1, 17, 17, dtype=torch.float64)
    mask[..., :5] = torch.randn(*mask.shape[:3], 5, generator=generator, dtype=torch.float64)
    image, rows = slice(5, 17), torch.tensor([0, 7])

    def three(*numbers: int) -> list[Tensor]:
        operator = OnHeads(operator_of("asag"), LayerHeads(MID, Heads()))
        given = [each[list(numbers)] for each in (query, key, value)]
        joint = operator.joint(*given, image, (3, 4), mask)
        return [joint, operator.plain(*given), operator.map_rows(given[0], given[1], rows)]

    together, turned = three(0, 1, 2), three(2, 0, 1)
    for number in range(3):
        for all_rows, others, alone in zip(together, turned, three(number), strict=True):
            torch.testing.assert_close(all_rows[number], alone[0], **EXACT)
            torch.testing.assert_close(others[(number + 1) % 3], alone[0], **EXACT)


@pytest.mark.parametrize(("count", "taken"), [(1, 1), (3, 1), (4, 1), (8, 2), (10, 2), (20, 5), (24, 6)])
def test_a_quarter_of_the_heads_is_aligned_and_at_least_one(count: int, taken: int) -> None:
    query = torch.randn(1, count, 6, 4)
    heads = LayerHeads(MID, Heads())
    heads.choose(query, query)
    assert len(heads.told()[0]) == taken


def test_the_aligned_heads_are_kept_for_a_run_and_chosen_anew_in_the_next() -> None:
    module, run = nn.Linear(2, 2), ChosenHeads()
    query = torch.randn(1, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    for first, number in ((query, 2), (-query, 0)):
        key = -first
        key[:, number] = first[:, number]
        kept = run.of(module, MID, Heads())
        kept.choose(first, key)
        for later in (first, -first):
            run.of(module, MID, Heads()).choose(later, later.roll(1, dims=1))
        assert run.told() == run.told(aligned=True) == {MID: [(number,)]}
        assert run.of(module, MID, Heads()) is kept
        run.forget()
        assert run.told() == {}
    kept.choose(query, query)
    # Another model comes into the same modules: the first one's heads are told, too.
    run.forget(told=True)
    kept.choose(query, -query + 3 * query * (torch.arange(4) == 3)[:, None, None])
    assert run.told()[MID][-1] == (3,)
    assert len(run.told()[MID]) == 2


def test_the_heads_of_both_passes_are_told() -> None:
    module, run, query = nn.Linear(2, 2), ChosenHeads(), torch.randn(1, 4, 6, 5)
    for numbers in (((0, 1),), ((3, 3),), ((0, 1),)):
        run.of(module, MID, Heads(numbers)).choose(query, query)
    assert run.told() == {MID: [(0, 1), (3,)]}


def test_each_layer_has_heads_of_its_own_and_named_ones_are_told_too() -> None:
    one, other, run, query = nn.Linear(2, 2), nn.Linear(2, 2), ChosenHeads(), torch.randn(1, 4, 6, 5)
    there, here = run.of(one, Address("in", 4, 0), Heads(((3, 3), (1, 1)))), run.of(other, MID, Heads())
    assert run.of(one, Address("in", 4, 1), Heads()) is not there
    for each in (there, here):
        each.choose(query, query)
    assert run.told() == {Address("in", 4, 0): [(1, 3)], MID: here.told()}
    assert run.told(aligned=True) == {MID: here.told()}


def test_a_head_that_only_the_running_layer_tells_missing_is_an_error() -> None:
    query, key, value = double_sequence(text=0)
    with pytest.raises(BlocksError, match=r"^'mid.0:h1,3'; mid.0 has: heads 0 to 2$"):
        on(make_operator("asag"), 1, 3).plain(query, key, value)


class Counting(Operator):
    """Notes how many heads it is given."""

    def __init__(self) -> None:
        self.given: list[int] = []

    def plain(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        self.given.append(query.shape[1])
        return value


def test_each_head_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary: list[int] = []
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def counted(query: Tensor, *others: Any, **named: Any) -> Tensor:
        ordinary.append(query.shape[1])
        return sdpa(query, *others, **named)

    monkeypatch.setattr("asag.chosen_heads.F.scaled_dot_product_attention", counted)
    query, key, value = double_sequence(text=0)
    for numbers, rest in (((1,), [2]), ((0, 2), [1]), ((0, 1, 2), [])):
        ordinary.clear()
        operator = Counting()
        on(operator, *numbers).plain(query, key, value)
        assert (operator.given, ordinary) == ([len(numbers)], rest)


@pytest.mark.parametrize("text", [0, 24])
@pytest.mark.parametrize("wanted", [Heads(), Heads(((0, 1), (5, 5)))])
def test_a_cuda_device_is_never_waited_for(wanted: Heads, text: int) -> None:
    """But for the copy of the heads' numbers when they are named, once a run."""
    with FakeCuda(89, False) as fake:
        query, key, value = (torch.empty(1, 8, 64 + text, 64, device="cuda", dtype=torch.float16) for _ in range(3))
        operator, image = OnHeads(make_operator("asag"), LayerHeads(MID, wanted)), slice(0, 64)
        if wanted.spans:
            operator.joint(query, key, value, image)
        with fake.recording() as record:
            operator.joint(query, key, value, image)
        with fake.recording() as again:
            operator.joint(query, key, value, image)
        with fake.recording() as whole:
            make_operator("asag").joint(query, key, value, image)
    assert [f"{op.waits} at {op.site}" for op in record.waits] == []
    # Three tensors with the chosen heads first, attention of the others, both in one, and back in order.
    assert again.kernels <= whole.kernels + 6


# In models -----------------------------------------------------------------------------------------------------------


class HeadByHead(Operator):
    """Of all heads, the `numbers` by the operator and the others by SoftMax, all of them computed."""

    def __init__(self, operator: Operator, *numbers: int) -> None:
        self.operator, self.numbers = operator, numbers

    def plain(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        return self.mixed(self.operator.plain(query, key, value, grid), query, key, value, None)

    def joint(self, query: Tensor, key: Tensor, value: Tensor, image: slice, grid: Any = None, mask: Any = None) -> Any:
        return self.mixed(self.operator.joint(query, key, value, image, grid, mask), query, key, value, mask)

    def mixed(self, weakened: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).clone()
        for number in self.numbers:
            out[:, number] = weakened[:, number]
        return out


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_heads_of_a_models_layer(model: str) -> None:
    case, operator = MODELS[model](), make_operator("asag")
    whole = choose_layers(case.model, case.family, case.blocks[0])
    block = block_name(whole[0].address)
    count = head_count(whole[0].module)
    assert count is not None
    assert count > 1
    with perturbed(whole, case.family, HeadByHead(operator, count - 1), case.token_grid):
        expected = case()
    with perturbed(whole, case.family, operator, case.token_grid):
        assert (case() - expected).norm() > 1e-6 * expected.norm()
    chosen = choose_layers(case.model, case.family, f"{block}:h{count - 1}")
    with perturbed(chosen, case.family, operator, case.token_grid):
        assert_close(case(), expected)
    own, copies = branch_of(case, f"{block}:h{count - 1}", operator, slice(1, 3))
    assert_close(copies, expected[1:])
    assert_close(own, case())
    with pytest.raises(BlocksError, match=rf"has: heads 0 to {count - 1}$"):
        choose_layers(case.model, case.family, f"{block}:h{count}")
