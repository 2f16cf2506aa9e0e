"""Half precision: shared work is rounding away from a whole pass, and nothing else; a request gives the same bytes."""

from __future__ import annotations

import pytest
import torch

from asag.settings import AsagSettings
from research.precision import measure, models
from research.precision.measure import Softmax, delta, pictures, size
from research.precision.models import ALONE, BACKWARDS


@pytest.mark.parametrize("name", models.NAMES)
def test_in_float64_shared_work_is_a_whole_pass(name: str) -> None:
    """What differs in half precision so is rounding: nothing else of the code knows the dtype."""
    exact = models.widened(models.build(name, torch.float32))
    asag = AsagSettings.from_mapping({}).operator
    whole, shared = delta(exact, asag(), shared=False), delta(exact, asag(), shared=True)
    assert size(shared - whole) <= 1e-11 * size(whole)
    assert size(delta(exact, Softmax(), shared=True)) <= 1e-11 * size(whole)


@pytest.mark.parametrize("name", ["unet", "flux (random)"])
def test_the_same_request_gives_the_same_bytes_whatever_ran_before(name: str) -> None:
    built = models.build(name, torch.float32)
    settings = {"scale": built.scale, "blocks": built.blocks}
    first = pictures(built, **settings)
    pictures(built, method="seg", **settings)
    pictures(built)
    assert torch.equal(pictures(built, **settings), first)


@pytest.mark.parametrize("name", ["unet", "flux (random)"])
def test_neighbours_in_the_batch_do_not_matter(name: str) -> None:
    built = models.build(name, torch.float32)
    settings = {"scale": built.scale, "blocks": built.blocks}
    together = pictures(built, **settings)
    moved = size(together - pictures(built))
    assert moved > 0
    for orders in (BACKWARDS, ALONE):
        assert size(pictures(built, orders, **settings) - together) <= 1e-2 * moved


def test_the_yardstick_counts_what_guidance_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of latents that guidance moves by 2 and sharing by 1, sharing is a half."""
    moved = {"pictures": 0.0, "shared": 2.0, "whole": 1.0}

    def made(built: object, order: object = None, **settings: object) -> torch.Tensor:
        way = "pictures" if not settings else "whole" if settings.get("reuse") is False else "shared"
        return torch.full((4, 1), moved[way], dtype=torch.float64)

    monkeypatch.setattr(measure, "pictures", made)
    found = measure.of_pictures("unet", torch.float32)
    assert found["sharing"] == 0.5
    assert found["again"] == found["one by one"] == 0.0


def test_the_page_has_a_table_of_deltas_and_one_of_pictures() -> None:
    lines = [
        {"of": "delta", "model": "unet", "dtype": "float16", "error_whole": 0.25},
        {"of": "pictures", "model": "unet", "dtype": "float16", "sharing": 0.0},
    ]
    page = measure.page(lines)
    assert "| model | dtype | error, whole pass |\n| --- | --- | --- |\n| unet | float16 | 0.25 |\n" in page
    assert "| model | dtype | sharing |\n| --- | --- | --- |\n| unet | float16 | 0 |\n" in page
