"""Each note on a guided run alone, and all in their order; of runs that were set so."""

from __future__ import annotations

import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from asag.hosts.generation import GuidedRun
from asag.hosts.reuse import Reuse
from asag.hosts.run_notes import WITHOUT_BLOCKS, WITHOUT_MODEL, how_it_was_stopped, notes_on
from asag.settings import AsagSettings

PLAIN = SimpleNamespace(experimental=False, name="Family")
NEW = SimpleNamespace(experimental=True, name="Family")


def run_of(**changed: Any) -> GuidedRun:
    """One that went as asked, three of three steps guided, but for what is changed of it."""
    run = GuidedRun(AsagSettings(enabled=True))
    went = {"guided_calls": 3, "announced": 3, "conflict": "", "largest": torch.tensor(0.5)}
    for name, value in {**went, **changed}.items():
        setattr(run.scaling if name == "largest" else run, name, value)
    return run


def whole_passes() -> Reuse:
    reuse = Reuse(True)
    reuse.whole, reuse.first_reason = 3, "a reason"
    return reuse


def other_rows() -> Reuse:
    reuse = Reuse(True)
    reuse.differed = torch.tensor(True)
    return reuse


WHOLE = "ASAG took a whole extra pass in 3 of 3 guided steps: a reason"
OTHER_ROWS = (
    "ASAG may have guided this image wrongly: the WebUI gave the model other inputs than in the steps before; turn off "
    "Share work"
)


def state(monkeypatch: pytest.MonkeyPatch, **what: bool) -> None:
    monkeypatch.setitem(sys.modules, "modules.shared", SimpleNamespace(state=SimpleNamespace(**what)))


NO_STEP = (
    "ASAG guided no step of this image: no step lies between start and end, or the setting Hires fix is hires "
    "and there was no hires pass; change these settings"
)
SINGLE = (
    "ASAG changed nothing: the image is so small that the weakened blocks see it as one token; choose other blocks, "
    "such as all"
)
NOTHING = (
    "ASAG changed nothing: the weakened attention gave the same as the ordinary attention; choose other blocks or "
    "another method"
)
MISSED = (
    "ASAG guided 3 steps and left out others: it can't guide them with this sampler (such as reForge's CFG++ "
    "samplers); choose another sampler"
)
NOTES: list[tuple[dict[str, Any], list[str]]] = [
    ({}, []),
    ({"notes": ["one", "two"]}, ["one", "two"]),
    ({"reuse": whole_passes()}, [WHOLE]),
    ({"reuse": whole_passes(), "reused_calls": 2}, [WHOLE.replace("3 of 3", "3 of 5")]),
    ({"reuse": other_rows()}, [OTHER_ROWS]),
    (
        {"left_out": Counter({WITHOUT_MODEL.format("Spectrum"): 4, WITHOUT_BLOCKS.format("TeaCache"): 2})},
        [
            "ASAG left out 4 steps that Spectrum made without running the model",
            "ASAG left out 2 steps that TeaCache made without the weakened blocks, as caches do",
        ],
    ),
    ({"missed_calls": 1}, [MISSED]),
    ({"guided_calls": 0}, [NO_STEP]),
    ({"guided_calls": 0, "conflict": "Regional Prompter"}, []),
    ({"operator": SimpleNamespace(changes_nothing=True)}, [SINGLE]),
    ({"operator": SimpleNamespace(changes_nothing=True), "largest": torch.tensor(0.0)}, [SINGLE]),
    ({"largest": torch.tensor(0.0)}, [NOTHING]),
    ({"largest": None}, []),
]


@pytest.mark.parametrize(("changed", "expected"), NOTES)
def test_what_is_told_of_a_run(monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], expected: list[str]) -> None:
    state(monkeypatch, interrupted=False, skipped=False)
    assert notes_on(run_of(**changed), PLAIN) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["interrupted", "skipped"])
def test_what_is_told_of_a_run_that_was_stopped(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    state(monkeypatch, **{how: True})
    assert how_it_was_stopped() == how
    stopped = f"ASAG guided {{}} of 3 steps: the image was {how}"
    assert notes_on(run_of(guided_calls=0), PLAIN) == [stopped.format(0)]  # type: ignore[arg-type]
    assert notes_on(run_of(missed_calls=2), PLAIN) == [MISSED]  # type: ignore[arg-type]
    everything = run_of(
        notes=["a note"],
        reuse=whole_passes(),
        left_out=Counter({WITHOUT_MODEL.format("Spectrum"): 1}),
        largest=torch.tensor(0.0),
    )
    assert notes_on(everything, NEW) == [  # type: ignore[arg-type]
        "a note",
        "ASAG is experimental in Family: checked with random weights, not on real pictures",
        WHOLE,
        "ASAG left out 1 steps that Spectrum made without running the model",
        stopped.format(3),
        NOTHING,
    ]


def test_without_a_host_nothing_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "modules.shared", raising=False)
    assert how_it_was_stopped() == ""
