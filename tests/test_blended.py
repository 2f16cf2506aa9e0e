"""`amount`: the map of a layer is (1 - a) SoftMax + a plan, against maps written out in float64 and POT's plan."""

import math

import ot
import pytest
import torch

from asag.blended import Blended
from asag.operators import METHODS, Sinkhorn
from asag.settings import AsagSettings
from tests.test_operators import dense_map, double_sequence, operator_of

EXACT = {"rtol": 0, "atol": 1e-12}
AMOUNTS = (0.0, 0.3, 0.8, 1.0)


@pytest.mark.parametrize("amount", AMOUNTS)
@pytest.mark.parametrize("method", METHODS)
def test_plain_has_the_mixed_map(method: str, amount: float) -> None:
    query, key, value = double_sequence(text=0)
    softmax = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(8), dim=-1)
    expected = (1 - amount) * softmax + amount * dense_map(method, query, key, (3, 4))
    operator = Blended(operator_of(method), amount)
    torch.testing.assert_close(operator.plain(query, key, value, (3, 4)), expected @ value, **EXACT)
    rows = operator.map_rows(query, key, torch.tensor([0, 7, 11]), (3, 4))
    torch.testing.assert_close(rows, expected[:, :, [0, 7, 11]], **EXACT)


@pytest.mark.parametrize("amount", AMOUNTS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("image", [slice(5, 17), slice(0, 12), slice(2, 14), slice(0, 17)])
def test_joint_has_the_mixed_map_for_image_queries(method: str, image: slice, amount: float) -> None:
    query, key, value = double_sequence(text=5)
    size = image.stop - image.start
    grid = (3, 4) if size == 12 else (1, 17)
    if method == "seg" and grid == (1, 17):
        pytest.skip("the published blur reflects no row of one")
    hidden = torch.zeros(1, 1, 17, 17, dtype=torch.float64)
    if size == 12:
        hidden[..., 0 if image.start else image.stop] = -2.0  # a text key
    logits = query @ key.transpose(-1, -2) / math.sqrt(8) + hidden
    softmax = torch.softmax(logits, dim=-1)
    weakened = softmax.clone()
    if method == "pag":
        alone = torch.full((size, size), -torch.inf, dtype=torch.float64).fill_diagonal_(0)
        logits[:, :, image, image] += alone
        weakened[:, :, image] = torch.softmax(logits, dim=-1)[:, :, image]
    else:
        mass = softmax[:, :, image, image].sum(-1, keepdim=True)
        weakened[:, :, image, image] = mass * dense_map(method, query[:, :, image], key[:, :, image], grid)
    expected = (1 - amount) * softmax + amount * weakened
    out = Blended(operator_of(method), amount).joint(query, key, value, image, grid, hidden if size == 12 else None)
    torch.testing.assert_close(out, expected @ value, **EXACT)


def test_a_mask_of_one_row_is_that_of_every_query() -> None:
    query, key, value = double_sequence(text=5)
    row = torch.zeros(1, 1, 1, 17, dtype=torch.float64)
    row[..., 1] = -2.0
    operator, image = Blended(Sinkhorn(), 0.3), slice(5, 17)
    expected = operator.joint(query, key, value, image, (3, 4), row.expand(1, 1, 17, 17))
    torch.testing.assert_close(operator.joint(query, key, value, image, (3, 4), row), expected, **EXACT)


def test_the_plan_in_the_mixed_map_is_pots() -> None:
    query, key, value = double_sequence(text=0)
    out = Blended(Sinkhorn(iterations=400), 0.4).plain(query, key, value)
    marginal = torch.full((12,), 1 / 12, dtype=torch.float64)
    for image in range(2):
        for head in range(3):
            cost = query[image, head] @ key[image, head].T / math.sqrt(8)
            plan = ot.sinkhorn(marginal, marginal, cost, reg=1.0, method="sinkhorn_log", stopThr=1e-13)
            expected = 0.6 * torch.softmax(cost, dim=-1) + 0.4 * 12 * plan
            torch.testing.assert_close(out[image, head], expected @ value[image, head], rtol=0, atol=1e-9)


def test_the_rows_of_a_map_that_needs_float64_are_mixed() -> None:
    """Figures look at them. Logits of 1000 are more than float32 holds to what is promised."""
    query, key, _ = (60 * each.float() for each in double_sequence(text=0))
    chosen = torch.tensor([0, 7])
    ordinary = torch.softmax(query.double() @ key.double().transpose(-1, -2) / math.sqrt(8), dim=-1)[:, :, chosen]
    weakened = Sinkhorn(iterations=2).map_rows(query, key, chosen)
    assert weakened.dtype == torch.float64
    rows = Blended(Sinkhorn(iterations=2), 0.3).map_rows(query, key, chosen)
    torch.testing.assert_close(rows, 0.7 * ordinary + 0.3 * weakened, rtol=0, atol=1e-3)


def test_the_setting_makes_the_operator_and_1_adds_nothing_to_it() -> None:
    assert AsagSettings(amount=0.25).operator() == Blended(Sinkhorn(), 0.25)
    assert AsagSettings(amount=1.0).operator() == Sinkhorn()


def test_an_amount_of_0_guides_nothing_and_says_so() -> None:
    settings = AsagSettings(enabled=True, amount=0.0)
    assert not settings.active
    assert settings.no_effect == "amount is 0, so attention stays as it is"
