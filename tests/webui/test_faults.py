"""Calls out of the extension fail in a real host, by the rows of tests/faults/table.py: what comes of it is what the
table says of the doubles, and the next plain image has the bits that it had."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.aftermath import HOSTS_OWN, LEFT_OUT, NOTED, RAISED, REFUSED, SAME, WHOLE_PASS
from tests.faults.injection import MESSAGE
from tests.faults.table import ROWS, WEBUIS

from .payloads import REUSE_ROUNDING, asag, assert_same, largest_difference, request
from .server import Answer, WebUI
from .test_notes import note_of

pytestmark = pytest.mark.logs_errors
OF_WEBUIS = [name for name, row in ROWS.items() if set(row.places) & set(WEBUIS)]
SIZE = {"width": 64, "height": 64}
ALL = {"blocks": "out.6-11:aligned", "contrast": 0.5, "rescale": 0.5, "unit": "cfg", "figures": True}
# Beside code of others in the model, such as ControlNet's, the first step's own pass goes through here, too.
HOSTS_PASS = "Step._sharing.forward.plain: original"
WAYS = {"shared": {"blocks": "out.6-11"}, "all": ALL, "whole": {"blocks": "out.6-11", "reuse": False}}


class Well:
    """The host without a fault: which calls run in each way of guiding, and what its pictures are."""

    def __init__(self, webui: WebUI) -> None:
        self.webui = webui
        self.plain = webui.txt2img(**request(**SIZE)).image
        answers = {way: self.ask(way) for way in WAYS}
        self.guided = {way: answer.image for way, answer in answers.items()}
        self.notes = {way: note_of(answer) for way, answer in answers.items()}
        for image in self.guided.values():
            assert largest_difference(image, self.plain) > REUSE_ROUNDING
        webui.get("/asag-probe/faults/runs")
        self.runs, self.numbers = {}, set()
        for way in WAYS:
            self.ask(way)
            told = webui.get("/asag-probe/faults/runs")
            self.runs[way] = told["runs"]
            self.numbers |= set(told["numbers"])
        assert self.runs["all"], "the extension's calls aren't counted"

    def ask(self, way: str) -> Answer:
        return self.webui.txt2img(**request(**SIZE, alwayson_scripts=asag(**WAYS[way])))

    def fault(self, row: str, kind: str) -> tuple[str, dict[str, Any]]:
        """The way of guiding in which a call of the row runs, and the fault: an error in the first run, or NaN in the
        last, which no trial of another pass catches."""
        for way, runs in self.runs.items():
            for key, times in runs.items():
                if key.startswith(f"{row} at ") and (kind != "nan" or key in self.numbers):
                    return way, {"key": key, "kind": kind, "hit": times - 1 if kind == "nan" else 0}
        pytest.skip("not called in these pictures")

    def outcome(self, way: str, answer: Answer, said: str) -> str:
        """What came of a fault, in the words of the table."""
        if answer.status != 200:
            detail = answer.body.get("detail", "")
            if not detail.startswith("ASAG"):
                assert MESSAGE in str(answer.body)
                return RAISED
            assert MESSAGE in detail
            assert "\n" not in detail
            assert said.count(detail) >= 1
            return REFUSED
        note = note_of(answer)
        if "left out its push" in note:
            return LEFT_OUT
        if note == self.notes[way] and largest_difference(answer.image, self.guided[way]) == 0:
            return SAME
        assert largest_difference(answer.image, self.guided[way]) <= REUSE_ROUNDING
        return WHOLE_PASS if "whole extra pass" in note else NOTED


@pytest.fixture(scope="module")
def well(webui: WebUI) -> Iterator[Well]:
    if webui.kind not in WEBUIS:
        pytest.skip("the table is of A1111 and Forge")
    webui.post("/asag-probe/faults/open")
    try:
        yield Well(webui)
    finally:
        webui.post("/asag-probe/faults/close")


def allowed(row: str, kind: str) -> set[str]:
    """Of a row's calls another one may come first than in the doubles: in a branch, which a whole pass makes good."""
    known = ROWS[row].nan if kind == "nan" else ROWS[row].fails
    found = {known} if isinstance(known, str) else set(known)
    if kind == "error":
        found |= {WHOLE_PASS, RAISED} if row.endswith(HOSTS_PASS) else {WHOLE_PASS}
    return found


@pytest.mark.parametrize("kind", ["error", "nan"])
@pytest.mark.parametrize("row", OF_WEBUIS)
def test_a_call_that_fails(webui: WebUI, well: Well, row: str, kind: str) -> None:
    known = ROWS[row]
    if webui.kind not in known.places or (kind == "nan" and not known.nan):
        pytest.skip("of another adapter, or of no numbers")
    way, fault = well.fault(row, kind)
    before = len(webui.log)
    assert "armed" in webui.post("/asag-probe/faults/at", **fault).body
    try:
        answer = well.ask(way)
    finally:
        webui.post("/asag-probe/faults/at")
    expected = allowed(row, kind)
    if expected != {HOSTS_OWN}:  # the host itself refuses a picture of NaN, or paints it
        assert well.outcome(way, answer, webui.log[before:]) in expected
    assert_same(webui.txt2img(**request(**SIZE)).image, well.plain)
