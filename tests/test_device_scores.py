"""What an accelerator computes, on a CPU: against the dense reference in float64, whatever the tiles."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import asag.device_scores
from asag.attention import adversarial_sinkhorn_attention
from asag.device_scores import DeviceScores, attention_by_tiles, full_float32
from asag.precision import float32_setting, has_autocast

# The bounds of adversarial_sinkhorn_attention, by dtype.
BOUNDS = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def heads_of(n: int, m: int, width: int, dtype: torch.dtype, largest: float, batch: int = 2) -> list[Tensor]:
    """Query, key and value with heads as hosts have them, strided views; no logit of λ q kᵀ exceeds `largest`."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(batch, count, 3, width, generator=generator) for count in (n, m, m)]
    size = float((made[0].norm(dim=-1).amax() * made[1].norm(dim=-1).amax()) / math.sqrt(width))
    made[0] *= largest / size
    return [tensor.to(dtype).transpose(1, 2) for tensor in made]


def by_tiles(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    normalize: str = "rows",
    tolerance: float | None = None,
    iterations: int = 2,
) -> Tensor:
    scale = -1 / math.sqrt(query.shape[3])
    return attention_by_tiles(query, key, value, scale, iterations, tolerance, normalize)


def expected_of(query: Tensor, key: Tensor, value: Tensor, normalize: str, iterations: int = 2) -> Tensor:
    given = (tensor.double() for tensor in (query, key, value))
    return adversarial_sinkhorn_attention(*given, normalize=normalize, iterations=iterations, impl="dense")


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.fixture(params=["whole heads", "rows of heads"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways by tiles: a head's scores fit one, or the sweeps of rows that any number of tokens can take."""
    if request.param == "rows of heads":
        monkeypatch.setattr(asag.device_scores, "MOST_SCALED_SWEEPS", 0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("normalize", ["rows", "columns"])
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("largest", [1.0, 30.0, 300.0])
@pytest.mark.parametrize(("n", "m", "width"), [(40, 40, 64), (17, 33, 40), (1, 5, 3)])
def test_it_is_the_dense_reference(
    n: int, m: int, width: int, largest: float, dtype: torch.dtype, normalize: str
) -> None:
    query, key, value = heads_of(n, m, width, dtype, largest)
    # float32 holds a logit of 300 to 2e-5, and a plan to as much.
    bound = max(BOUNDS[dtype], 10 * largest * 2**-24)
    expected = expected_of(query, key, value, normalize)
    assert relative_error(by_tiles(query, key, value, normalize), expected) < bound


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("normalize", ["rows", "columns"])
@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_logits_of_ten_thousand_are_within_two_thousandths(iterations: int, normalize: str) -> None:
    query, key, value = heads_of(40, 40, 64, torch.float32, 1e4)
    expected = expected_of(query, key, value, normalize, iterations)
    assert relative_error(by_tiles(query, key, value, normalize, iterations=iterations), expected) < 2e-3


@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 5])
def test_keys_that_all_queries_shun_get_their_share(iterations: int) -> None:
    """One key in a half has logits 2000 below all others: its column would vanish in float32 without the logarithm."""
    query, key, value = (torch.ones(1, 1, count, 4, dtype=torch.float64) for count in (6, 5, 5))
    key[:, :, 0] = 4000
    value[0, 0] = torch.arange(20.0, dtype=torch.float64).view(5, 4)
    query[:, :, 3:] += torch.linspace(0, 1e-3, 3, dtype=torch.float64)[:, None]
    expected = expected_of(query, key, value, "columns", iterations)
    found = by_tiles(query.float(), key.float(), value.float(), "columns", iterations=iterations)
    assert relative_error(found, expected) < 2e-3


@pytest.mark.parametrize("normalize", ["rows", "columns"])
@pytest.mark.parametrize("elements", [1, 17 * 33, 100, 4 * 17 * 33, 6 * 17 * 33 - 1])
def test_tiles_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch, elements: int, normalize: str) -> None:
    query, key, value = heads_of(17, 33, 8, torch.float64, 30.0)
    whole = by_tiles(query, key, value, normalize)
    monkeypatch.setattr(asag.device_scores, "DEVICE_TILE_BYTES", elements * 8)
    torch.testing.assert_close(by_tiles(query, key, value, normalize), whole)
    tiles = list(DeviceScores(query, key, 1.0, torch.float64)._tiles(17, 33))
    assert len(tiles) > 1
    # A tile has at least a row.
    assert all((h.stop - h.start) * (r.stop - r.start) * 33 <= max(elements, 33) for h, r in tiles)


@pytest.mark.parametrize("normalize", ["rows", "columns"])
def test_a_tolerance_stops_each_head_as_the_reference_does(normalize: str) -> None:
    query, key, value = heads_of(20, 25, 8, torch.float64, 20.0)
    query[:, 1] *= 0.01
    for tolerance in (1e-9, 1e-2, 1e9):
        expected = adversarial_sinkhorn_attention(
            query, key, value, normalize=normalize, tolerance=tolerance, impl="dense"
        )
        torch.testing.assert_close(by_tiles(query, key, value, normalize, tolerance), expected)


def test_keys_that_share_a_large_mean_lose_nothing() -> None:
    query, key, value = heads_of(30, 30, 16, torch.float32, 10.0)
    expected = adversarial_sinkhorn_attention(query.double(), key.double() + 1000, value.double(), impl="dense")
    assert relative_error(by_tiles(query, key + 1000, value), expected) < 1e-3


class Backend:
    """A double of torch.backends.cuda.matmul as it is in some versions of torch: a setting, and what is raised for
    another name."""

    def __init__(self, name: str, value: object, error: type[Exception]) -> None:
        self.__dict__[name] = value
        self.__dict__["error"] = error

    def __getattr__(self, name: str) -> object:
        raise self.__dict__["error"](f"Unknown attribute {name}")

    def __setattr__(self, name: str, value: object) -> None:
        getattr(self, name)
        self.__dict__[name] = value


def settings_seen(name: str, before: object) -> list[object]:
    """torch's setting inside of full_float32, and after an error in it, first for CUDA and then for MPS."""
    matmul, seen = torch.backends.cuda.matmul, []

    def failing(device_type: str) -> None:
        with full_float32(device_type):
            seen.append(getattr(matmul, name))
            raise RuntimeError("inside")

    kept = getattr(matmul, name)
    setattr(matmul, name, before)
    try:
        for device_type in ("cuda", "mps"):
            with pytest.raises(RuntimeError, match="inside"):
                failing(device_type)
            seen.append(getattr(matmul, name))
    finally:
        setattr(matmul, name, kept)
    return seen


@pytest.mark.parametrize("is_on", [False, True])
def test_tf32_is_off_inside_and_as_it_was_after(is_on: bool) -> None:
    name, full = float32_setting(torch.backends.cuda.matmul)
    before = {"fp32_precision": ("none", "tf32"), "allow_tf32": (False, True)}[name][is_on]
    assert settings_seen(name, before) == [full, before, before, before]


@pytest.mark.parametrize(
    ("name", "before", "full", "error"),
    [
        ("allow_tf32", True, False, AssertionError),  # torch 2.1
        ("allow_tf32", True, False, AttributeError),
        ("fp32_precision", "tf32", "ieee", AttributeError),  # since torch 2.9
    ],
)
def test_tf32_is_off_in_other_versions_of_torch(
    monkeypatch: pytest.MonkeyPatch, name: str, before: object, full: object, error: type[Exception]
) -> None:
    monkeypatch.setattr(torch.backends.cuda, "matmul", Backend(name, before, error))
    assert settings_seen(name, before) == [full, before, before, before]


# torch 2.5 brought an autocast for MPS, and this function in or before it.
SAYS = hasattr(torch.amp, "is_autocast_available")


@pytest.mark.parametrize(
    ("device_type", "found"), [("cpu", True), ("cuda", True), ("xpu", True), ("mps", SAYS), ("privateuseone", False)]
)
def test_autocast_is_known_where_torch_has_it(device_type: str, found: bool) -> None:
    assert has_autocast(device_type) == found


def test_mps_has_no_autocast_in_a_torch_that_cannot_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.amp, "is_autocast_available", raising=False)
    assert [has_autocast(each) for each in ("mps", "cpu")] == [False, True]
