"""Random numbers inside a model: drawn again, and gone on with; generators of others are doubles."""

from __future__ import annotations

import random
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from asag.random_state import RandomState

CPU = torch.device("cpu")


def test_the_cpus_numbers_are_drawn_again_and_then_gone_on_with() -> None:
    torch.manual_seed(5)
    expected = torch.rand(4).tolist()
    torch.manual_seed(5)
    state = RandomState(CPU)
    drawn = [float(torch.rand(())) for _ in range(2)]
    with state.again():
        drawn += [float(torch.rand(())) for _ in range(3)]
    drawn.append(float(torch.rand(())))
    with pytest.raises(ValueError, match="no"), state.again():
        raise ValueError("no")
    drawn.append(float(torch.rand(())))
    assert drawn == [*expected[:2], *expected[:3], *expected[2:]]
    state.restore()
    assert float(torch.rand(())) == expected[0]


class Backend:
    """The double of torch.cuda, torch.xpu or torch.mps: a state for each device."""

    def __init__(self) -> None:
        self.states: dict[Any, int] = {}

    def get_rng_state(self, device: Any = None) -> int:
        return self.states.get(device, 0)

    def set_rng_state(self, state: int, device: Any = None) -> None:
        self.states[device] = state


@pytest.mark.parametrize(("kind", "known_by"), [("cuda", "its device"), ("xpu", "its device"), ("mps", "none")])
def test_the_devices_own_generator_is_kept(monkeypatch: pytest.MonkeyPatch, kind: str, known_by: str) -> None:
    backend: Any = Backend()
    monkeypatch.setattr(torch, kind, backend, raising=False)
    device: Any = torch.device(kind, 0)
    own = device if known_by == "its device" else None
    backend.states[own] = 7
    state = RandomState(device)
    backend.states[own] = 9
    with state.again():
        assert backend.states == {own: 7}
        backend.states[own] = 8
    assert backend.states == {own: 9}


def test_hypertiles_tiles_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = random.Random(3)
    monkeypatch.setitem(sys.modules, "hypertile", SimpleNamespace(RNG_INSTANCE=tiles))
    state = RandomState(CPU)
    first = tiles.random()
    with state.again():
        assert tiles.random() == first
    fresh = random.Random(3)
    assert [first, tiles.random()] == [fresh.random(), fresh.random()]
    monkeypatch.setitem(sys.modules, "hypertile", SimpleNamespace())
    assert len(RandomState(CPU).generators) == 1


def test_tomesds_generator_is_drawn_from_again() -> None:
    model: Any = nn.Identity()
    keeper: dict[str, Any] = {"generator": None}
    model._tome_info = {"args": keeper}
    before = RandomState(CPU, model)
    keeper["generator"] = torch.Generator().manual_seed(3)
    expected = torch.rand(3, generator=torch.Generator().manual_seed(3)).tolist()
    state = RandomState(CPU, model)
    drawn = [float(torch.rand((), generator=keeper["generator"]))]
    for _ in range(2):
        with state.again():
            drawn.append(float(torch.rand((), generator=keeper["generator"])))
    drawn.append(float(torch.rand((), generator=keeper["generator"])))
    assert drawn == [expected[0], expected[0], expected[0], expected[1]]
    with before.again():
        assert keeper["generator"] is None
    assert float(torch.rand((), generator=keeper["generator"])) == expected[2]
    # Another model's isn't looked at.
    assert len(RandomState(CPU, nn.Identity()).generators) == len(RandomState(CPU).generators) == 1
    assert len(before.generators) == 2
