"""The parts of a perturbed pass: rows cut out of what a model is given, outputs joined, attributes put back."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asag.blocks import Address
from asag.models.base import AttentionLayer, TokenGrid
from asag.perturb import attribute_replaced, branching, forward_replaced, slice_rows
from tests.support import Softmax


@dataclass
class Given:
    """What a host may put tensors in."""

    rows: Tensor
    name: str = "a"


def test_rows_are_cut_out_of_whatever_holds_them() -> None:
    rows, other, times = torch.arange(6.0).view(3, 2), torch.arange(4.0), torch.tensor(5.0)
    given = {
        "a": [rows, (other, None)],
        "b": Given(rows),
        "c": times,
        "d": "text",
        "e": Given,
        "h": rows[:, 0],
        "f": {"g": rows},
    }
    found = slice_rows(given, slice(1, 3), 3)
    assert list(found) == list(given)
    assert torch.equal(found["a"][0], rows[1:])
    assert type(found["a"][1]) is tuple
    assert found["a"][1][0] is other
    assert found["a"][1][1] is None
    assert torch.equal(found["b"].rows, rows[1:])
    assert found["b"].name == "a"
    assert found["c"] is times
    assert (found["d"], found["e"]) == ("text", Given)
    assert torch.equal(found["f"]["g"], rows[1:])
    assert torch.equal(found["h"], rows[1:, 0])
    assert given["b"].rows is rows  # type: ignore[union-attr]


def test_an_attribute_comes_back_or_goes_away() -> None:
    module = nn.Identity()
    with pytest.raises(ValueError, match="no"), attribute_replaced(module, "forward", len):
        raise ValueError("no")
    assert "forward" not in module.__dict__
    module.forward = others = lambda x: 2 * x
    with forward_replaced(module, len):
        assert module([1, 2]) == 2
        with forward_replaced(module, max):
            assert module([1, 2]) == 2
            assert module.forward is max
        assert module.forward is len
    assert module.forward is others
    with attribute_replaced(module, "mark", 1):
        assert module.mark == 1
    assert "mark" not in module.__dict__


class Layer(nn.Module):
    """Gives its rows in every form in which hosts' layers give theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(2, 2)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, scale: Tensor) -> Any:
        self.seen.append((x, scale))
        return [x * scale, (None, x + torch.rand(()))]


class Model(nn.Module):
    """One stage before the layer, and the layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer = nn.Identity(), Layer()

    def forward(self, x: Tensor, scale: Tensor) -> Any:
        return self.layer(self.first(x), scale)


class Tripling:
    """The double of a family whose replacement triples what goes in; it has no stages where `stages` is empty."""

    row_methods = ("sizes",)

    def __init__(self, *stages: nn.Module) -> None:
        self.found = list(stages)

    def stages(self, model: Any) -> list[nn.Module]:
        return self.found

    def replacement(self, layer: Any, original: Any, operator: Any, token_grid: Any) -> Any:
        return lambda x, scale: original(3 * x, scale)


def test_a_branch_gives_each_row_its_own_and_the_copies_the_replacements() -> None:
    model: Any = Model()
    model.sizes = lambda given: given
    layer: Any = AttentionLayer(Address("mid", 0, 0), model.layer)
    x, scale = torch.randn(3, 4, 2), torch.randn(3, 1, 1)
    told: list[list[int]] = []
    family: Any = Tripling(model.first, model.layer)
    before = dict(model.layer.__dict__), dict(model.__dict__)
    torch.manual_seed(7)
    with branching(
        model, [layer], family, Softmax(), TokenGrid(), slice(1, 3), 3, lambda rows: told.append(list(rows))
    ):
        (scaled, (nothing, shifted)) = model(x, scale)
        assert model.sizes([1, 2, 3]) == [1, 2, 3, 2, 3]
    after = torch.rand(())
    torch.manual_seed(7)
    drawn = torch.rand(())
    assert torch.rand(()) == after  # one number alone was drawn
    scaled, shifted = scaled.as_subclass(Tensor), shifted.as_subclass(Tensor)
    torch.testing.assert_close(scaled, torch.cat([x * scale, 3 * x[1:] * scale[1:]]))
    torch.testing.assert_close(shifted, torch.cat([x + drawn, 3 * x[1:] + drawn]))
    assert nothing is None
    assert told == [[0, 1, 2, 1, 2], [0, 1, 2], [1, 2], [0, 1, 2, 1, 2], [0, 1, 2]]
    assert [given[0].shape[0] for given in model.layer.seen] == [3, 2]
    assert (dict(model.layer.__dict__), dict(model.__dict__)) == before


def test_a_model_that_cant_branch_says_so() -> None:
    model = Model()
    layer: Any = AttentionLayer(Address("mid", 0, 0), model.layer)

    def opened(*stages: nn.Module) -> None:
        family: Any = Tripling(*stages)
        with branching(model, [layer], family, Softmax(), TokenGrid(), slice(0, 1), 1):
            """Never here."""

    with pytest.raises(RuntimeError, match="Model takes no more rows on the way"):
        opened()
    with pytest.raises(RuntimeError, match="none of the 2 stages holds a layer to perturb"):
        opened(model.first, nn.Identity())


def test_what_has_no_rows_passes_through() -> None:
    shaped: Any = SimpleNamespace(shape=())
    assert slice_rows(shaped, slice(0, 1), 1) is shaped
    assert slice_rows(3, slice(0, 1), 1) == 3
