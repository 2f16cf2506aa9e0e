"""When perturbed rows are taken from the host's own calls, when not, and what is told of it: without a model."""

from __future__ import annotations

from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor, nn

from asag.hosts.reuse import Reuse
from asag.random_state import RandomState

OWN = torch.tensor([[3.0, 4.0], [0.0, 5.0]])
COPIES = torch.tensor([[7.0, 8.0]])


class Model:
    """Counts its calls, and draws a random number in each."""

    def __init__(self, own: Tensor = OWN, error: Exception | None = None) -> None:
        self.own, self.error = own, error
        self.plain_calls = self.branched_calls = 0
        self.drawn: list[float] = []

    def plain(self) -> Tensor:
        self.plain_calls += 1
        self.drawn.append(float(torch.rand(())))
        return OWN

    def branched(self) -> tuple[Tensor, Tensor]:
        self.branched_calls += 1
        self.drawn.append(float(torch.rand(())))
        if self.error is not None:
            raise self.error
        return self.own, COPIES

    def called(self, reuse: Reuse, uncertain: bool) -> tuple[Tensor, Tensor | None]:
        return reuse.call(self.plain, self.branched, RandomState(OWN.device), uncertain)


def test_where_rows_are_independent_the_model_runs_once() -> None:
    model = Model()
    own, copies = model.called(Reuse(True), False)
    assert own is OWN
    assert copies is COPIES
    assert (model.plain_calls, model.branched_calls) == (0, 1)


def test_where_that_is_uncertain_the_hosts_rows_are_of_a_run_without_a_branch() -> None:
    model, reuse = Model(own=OWN.clone()), Reuse(True)
    torch.manual_seed(1)
    own, copies = model.called(reuse, True)
    after = float(torch.rand(()))
    assert own is OWN
    assert copies is COPIES
    assert (model.plain_calls, model.branched_calls) == (1, 1)
    assert reuse.on
    # Both runs draw the same number, and what comes after goes on as after one run.
    torch.manual_seed(1)
    first, second = float(torch.rand(())), float(torch.rand(()))
    assert (model.drawn, after) == ([first, first], second)
    reuse.trusted = True
    model.called(reuse, True)
    assert (model.plain_calls, model.branched_calls) == (1, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("share", "agrees"), [(0.97, True), (1.03, False)])
def test_how_far_rows_may_lie_apart(dtype: torch.dtype, share: float, agrees: bool) -> None:
    bound = {torch.float16: 0.01, torch.bfloat16: 0.04}.get(dtype, 0.001)
    reuse = Reuse(True)
    reuse.dtype = dtype
    _, copies = Model(own=OWN * (1 + share * bound)).called(reuse, True)
    assert (copies is COPIES, reuse.on) == (agrees, agrees)
    assert reuse.reason == ("" if agrees else "shared work gave another result, perhaps through another extension")
    shared, whole = OWN * (1 - share * bound), Model()
    reuse = Reuse(True)
    reuse.dtype = dtype
    assert reuse.predict(shared, whole.plain, True) is (shared if agrees else OWN)
    assert (reuse.trusted, whole.plain_calls) == (agrees, 1)
    assert (reuse.shared, reuse.whole) == ((1, 0) if agrees else (0, 1))


@pytest.mark.parametrize("uncertain", [False, True])
def test_a_branch_that_fails_costs_a_run_and_no_random_number(uncertain: bool) -> None:
    model, reuse = Model(error=RuntimeError("no room\nfor it")), Reuse(True)
    torch.manual_seed(2)
    own, copies = model.called(reuse, uncertain)
    after = float(torch.rand(()))
    assert own is OWN
    assert copies is None
    assert (model.plain_calls, model.branched_calls) == (1, 1)
    assert reuse.reason == "RuntimeError: no room"
    assert not reuse.on
    torch.manual_seed(2)
    first, second = float(torch.rand(())), float(torch.rand(()))
    assert (model.drawn, after) == ([first, first], second)


@pytest.mark.parametrize("uncertain", [True, False])
def test_what_a_failed_branch_computed_is_let_go_before_the_model_runs_again(uncertain: bool) -> None:
    """Where memory is short the second run would fail as well."""
    held: list[ref[Tensor]] = []

    def branched() -> tuple[Tensor, Tensor]:
        activations = torch.zeros(3)
        held.append(ref(activations))
        raise torch.cuda.OutOfMemoryError("no memory")

    def plain() -> Tensor:
        assert [each() for each in held] in ([], [None])
        return OWN

    reuse = Reuse(True)
    assert reuse.call(plain, branched, RandomState(OWN.device), uncertain) == (OWN, None)
    assert reuse.reason == "OutOfMemoryError: no memory"
    assert [each() for each in held] == [None]


def test_what_is_trusted_isnt_compared_again() -> None:
    reuse, model = Reuse(True), Model()
    shared = OWN.clone()
    for _ in range(3):
        assert reuse.predict(shared, model.plain, True) is shared
    assert (model.plain_calls, reuse.shared, reuse.whole) == (1, 3, 0)
    other = Reuse(True)
    assert other.predict(2 * OWN, model.plain, False) is not OWN
    assert other.predict(None, model.plain, True) is OWN
    assert (model.plain_calls, other.shared, other.whole) == (2, 1, 1)


def test_a_pass_begins_anew_and_the_first_reason_is_told() -> None:
    reuse = Reuse(True)
    reuse.give_up("the first reason")
    reuse.give_up("the second reason")
    reuse.trusted = True
    reuse.begin_pass()
    assert reuse.on
    assert not reuse.trusted
    assert reuse.comment() is None
    reuse.predict(OWN, Model().plain, False)
    assert reuse.comment() is None
    for _ in range(2):
        reuse.predict(None, Model().plain, False)
    assert reuse.comment() == "ASAG took a whole extra pass in 2 of 3 guided steps: the first reason"


def test_who_doesnt_want_it_is_told_nothing(caplog: pytest.LogCaptureFixture) -> None:
    reuse = Reuse(False)
    reuse.give_up("a reason")
    reuse.predict(None, Model().plain, False)
    assert not reuse.on
    assert reuse.comment() is None
    assert caplog.messages == []


def test_a_reason_is_in_the_log_once_in_a_pass(caplog: pytest.LogCaptureFixture) -> None:
    reuse = Reuse(True)
    for _ in range(2):
        reuse.give_up("one")
        reuse.give_up("two")
        reuse.begin_pass()
    assert caplog.messages == ["ASAG takes a whole extra pass: one"] * 2


class Network(nn.Module):
    """Counts how often its modules were looked through."""

    looks = 0

    def forward(self, x: Tensor) -> Tensor:
        return x

    def modules(self) -> Any:
        self.looks += 1
        return super().modules()


def test_a_model_is_looked_at_once_a_pass() -> None:
    def unknown(*given: Any) -> None:
        """Code of nobody that is known."""

    reuse, plain, hooked = Reuse(True), Network(), Network()
    hooked.register_forward_hook(unknown)
    assert not reuse.look_at(plain)
    assert not reuse.look_at(plain)
    assert (plain.looks, reuse.counting, reuse.on) == (1, [], True)
    reuse.trusted = True
    assert reuse.look_at(hooked)
    assert (reuse.counting, reuse.on, reuse.trusted) == ([unknown], False, False)
    assert not reuse.look_at(plain)
    assert (plain.looks, reuse.counting) == (2, [])
    reuse.begin_pass()
    reuse.look_at(plain)
    assert plain.looks == 3


def test_a_call_that_is_asked_for_again_is_found_by_its_numbers_once_and_then_by_its_place() -> None:
    reuse, calls = Reuse(True), [(OWN, COPIES), (COPIES, OWN), (2 * COPIES, OWN)]
    assert reuse.find(calls, (2 * COPIES, OWN), 0, uncertain=False) == 2
    assert reuse.find(calls, (OWN, 3 * COPIES), 1, uncertain=False) == -1
    assert reuse.differed is None
    later = [tuple(5 * each for each in call) for call in calls]
    assert reuse.find(later, later[2], 0, uncertain=False) == 2
    assert not reuse.differed
    assert reuse.find(later, (later[1][0], later[2][1]), 0, uncertain=False) == 2
    assert reuse.differed
    # Beside code of others, at another place, and in another pass the numbers count.
    assert reuse.find(later, later[1], 0, uncertain=True) == 1
    assert reuse.find(calls, calls[1], 2, uncertain=False) == 1
    reuse.begin_pass()
    assert reuse.find(later, later[2], 0, uncertain=False) == 2
