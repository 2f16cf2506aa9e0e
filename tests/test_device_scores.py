"""What an accelerator computes, on a CPU: against the dense reference in float64, whatever the tiles."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import asag.attention
import asag.device_scores
from asag.attention import adversarial_sinkhorn_attention, key_mask
from asag.device_scores import DeviceScores, full_float32
from asag.precision import has_autocast

# The bounds of adversarial_sinkhorn_attention, by dtype.
BOUNDS = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def heads_of(n: int, m: int, width: int, dtype: torch.dtype, largest: float, batch: int = 2) -> list[Tensor]:
    """Query, key and value with heads as hosts have them, strided views; no logit of λ q kᵀ exceeds `largest`."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(batch, count, 3, width, generator=generator) for count in (n, m, m)]
    size = float((made[0].norm(dim=-1).amax() * made[1].norm(dim=-1).amax()) / math.sqrt(width))
    made[0] *= largest / size
    return [tensor.to(dtype).transpose(1, 2) for tensor in made]


def on_device(
    query: Tensor, key: Tensor, value: Tensor, normalize: str = "rows", tolerance: float | None = None
) -> Tensor:
    scale = -1 / math.sqrt(query.shape[3])
    return asag.attention._on_device(query, key, value, scale, 2, tolerance, normalize)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("normalize", ["rows", "columns"])
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("largest", [1.0, 30.0, 300.0])
@pytest.mark.parametrize(("n", "m", "width"), [(40, 40, 64), (17, 33, 40), (1, 5, 3)])
def test_it_is_the_dense_reference(
    n: int, m: int, width: int, largest: float, dtype: torch.dtype, normalize: str
) -> None:
    query, key, value = heads_of(n, m, width, dtype, largest)
    given = (tensor.double() for tensor in (query, key, value))
    expected = adversarial_sinkhorn_attention(*given, normalize=normalize, impl="dense")
    # float32 holds a logit of 300 to 2e-5, and a plan to as much.
    bound = max(BOUNDS[dtype], 10 * largest * 2**-24)
    assert relative_error(on_device(query, key, value, normalize), expected) < bound


def test_logits_of_ten_thousand_are_within_two_thousandths() -> None:
    query, key, value = heads_of(40, 40, 64, torch.float32, 1e4)
    expected = adversarial_sinkhorn_attention(query.double(), key.double(), value.double(), impl="dense")
    assert relative_error(on_device(query, key, value), expected) < 2e-3


@pytest.mark.parametrize("normalize", ["rows", "columns"])
@pytest.mark.parametrize("elements", [1, 17 * 33, 100, 4 * 17 * 33, 6 * 17 * 33 - 1])
def test_tiles_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch, elements: int, normalize: str) -> None:
    query, key, value = heads_of(17, 33, 8, torch.float64, 30.0)
    whole = on_device(query, key, value, normalize)
    monkeypatch.setattr(asag.device_scores, "DEVICE_TILE_BYTES", elements * 8)
    assert not DeviceScores(query, key, 1.0, torch.float64).one_tile
    torch.testing.assert_close(on_device(query, key, value, normalize), whole)


@pytest.mark.parametrize("normalize", ["rows", "columns"])
def test_a_tolerance_stops_each_head_as_the_reference_does(normalize: str) -> None:
    query, key, value = heads_of(20, 25, 8, torch.float64, 20.0)
    query[:, 1] *= 0.01
    for tolerance in (1e-9, 1e-2, 1e9):
        expected = adversarial_sinkhorn_attention(
            query, key, value, normalize=normalize, tolerance=tolerance, impl="dense"
        )
        torch.testing.assert_close(on_device(query, key, value, normalize, tolerance), expected)


def test_keys_that_share_a_large_mean_lose_nothing() -> None:
    query, key, value = heads_of(30, 30, 16, torch.float32, 10.0)
    expected = adversarial_sinkhorn_attention(query.double(), key.double() + 1000, value.double(), impl="dense")
    assert relative_error(on_device(query, key + 1000, value), expected) < 1e-3


@pytest.mark.parametrize("before", ["none", "tf32"])
def test_tf32_is_off_inside_and_as_it_was_after(before: str) -> None:
    matmul, seen = torch.backends.cuda.matmul, []

    def failing(device_type: str) -> None:
        with full_float32(device_type):
            seen.append(matmul.fp32_precision)
            raise RuntimeError("inside")

    kept = matmul.fp32_precision
    try:
        matmul.fp32_precision = before
        for device_type in ("cuda", "mps"):
            with pytest.raises(RuntimeError, match="inside"):
                failing(device_type)
            seen.append(matmul.fp32_precision)
    finally:
        matmul.fp32_precision = kept
    assert seen == ["ieee", before, before, before]


def test_a_mask_of_a_bias_repeats_one_row() -> None:
    bias = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0))
    mask = key_mask(bias, 7)
    torch.testing.assert_close(mask, bias[:, :, None].expand(2, 3, 7, 20))
    assert mask.stride(2) == 0


@pytest.mark.parametrize(
    ("device_type", "found"), [("cpu", True), ("cuda", True), ("xpu", True), ("mps", True), ("privateuseone", False)]
)
def test_autocast_is_known_where_torch_has_it(device_type: str, found: bool) -> None:
    assert has_autocast(device_type) == found
