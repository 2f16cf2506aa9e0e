"""Each call of each adapter fails, by an error, by NaN, by an interruption and for want of memory: after that pictures
are as if ASAG had never been there, and the user knows what happened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from asag.hosts.diffusers_pipeline import asag_guidance
from tests.faults.aftermath import RAISED, Examined, examined
from tests.faults.calls import calls
from tests.faults.injection import FAULTS
from tests.faults.places import PLACES, SHARED
from tests.faults.table import ROWS

CALLS = calls()
OF_PLACE = {name: [row for row, known in ROWS.items() if name in known.places] for name in PLACES}
# Adapter by adapter: to make one costs more than a fault. No row: all of them.
PAIRS = [(name, row) for name in PLACES for row in ("", *OF_PLACE[name])]


class Adapters:
    """One adapter at a time, which stays as long as the same is asked for."""

    def __init__(self) -> None:
        self.open, self.name = ExitStack(), ""

    def of(self, name: str) -> Examined:
        if name != self.name:
            self.open.close()
            self.name, self.well = name, self.open.enter_context(examined(name, CALLS))
        return self.well


@pytest.fixture(scope="module")
def adapters() -> Iterator[Adapters]:
    found = Adapters()
    with found.open:
        yield found


@pytest.mark.parametrize(("name", "row"), PAIRS)
def test_what_comes_of_a_call_that_fails(adapters: Adapters, name: str, row: str) -> None:
    well = adapters.of(name)
    if not row:
        reached = {key.split(" at ")[0] for hits in well.runs.values() for key in hits}
        assert reached == set(OF_PLACE[well.place.name])
        return
    known, problems = ROWS[row], []
    for case in well.cases(row, with_nan=bool(known.nan)):
        outcome, wrong = well.after(case)
        expected = known.nan if case.kind == "nan" else known.fails
        if case.kind == "interrupt" or (case.kind != "nan" and not well.place.has_notes):
            expected = RAISED
        if outcome not in expected:
            wrong.append(f"it ends otherwise: {outcome}; the table has {expected}")
        problems += [f"{case}: {each}" for each in wrong]
    assert not problems, "\n".join(problems)


def test_after_an_interruption_the_same_guidance_of_diffusers_goes_on(adapters: Adapters) -> None:
    """In a `with` that stays open, as in a notebook: torch calls no hook after a KeyboardInterrupt."""
    well = adapters.of("diffusers")
    place: Any = well.place
    key = well.reached("asag/perturb.py: _by_rows.by_rows.run: function")[0]
    with asag_guidance(place.pipe, scale=1.5, **SHARED):
        with well.faults.at(key, 0, FAULTS["interrupt"]), pytest.raises(KeyboardInterrupt):
            place.pipe(**place.given)
        again = place.pipe(**place.given).images
    assert torch.equal(again, well.guided["shared"][0])
    assert place.state() == well.state
