"""What the block map is told: a model's blocks, what a list selects of them, and what a click makes of the list."""

from __future__ import annotations

import pytest

from asag.blocks import Address, parse_blocks
from asag.webui.block_map import inventory

ADDRESSES = [Address("in", 4, 0), Address("in", 4, 1), Address("in", 5, 0), Address("mid", 0, 0), Address("out", 0, 0)]


class FamilyDouble:
    name, experimental, reason = "double", False, "because"

    def default_blocks(self, addresses):
        return parse_blocks("mid")


def told(blocks="auto", toggle=""):
    return inventory(FamilyDouble(), ADDRESSES, blocks, toggle)


def chosen(answer):
    return {block["address"]: block["chosen"] for block in answer["blocks"] if block["chosen"]}


def test_the_model_and_what_auto_and_late_mean():
    answer = told()
    assert {name: answer[name] for name in ("family", "experimental", "auto", "auto_reason", "late", "text")} == {
        "family": "double",
        "experimental": False,
        "auto": "mid",
        "auto_reason": "because",
        "late": "out.0",
        "text": "auto",
    }
    assert [(block["address"], block["layers"]) for block in answer["blocks"]] == [
        ("in.4", 2),
        ("in.5", 1),
        ("mid", 1),
        ("out.0", 1),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", {"mid": 1}),
        ("late", {"out.0": 1}),
        ("all", {"in.4": 2, "in.5": 1, "mid": 1, "out.0": 1}),
        ("in.4.1, d1", {"in.4": 1, "in.5": 1}),
    ],
)
def test_what_a_list_selects(text, expected):
    answer = told(text)
    assert chosen(answer) == expected
    assert (answer["unknown"], answer["problem"], answer["text"]) == ([], None, text)


@pytest.mark.parametrize(
    ("text", "heads"),
    [
        ("mid, in.4", {"in.4": None, "in.5": None, "mid": None, "out.0": None}),
        ("mid:h0,2, in.4:aligned", {"in.4": "aligned", "in.5": None, "mid": "h0,2", "out.0": None}),
        ("in.4.0:h1, in.4.1", {"in.4": "some", "in.5": None, "mid": None, "out.0": None}),
        ("in.4.0:h1", {"in.4": "h1", "in.5": None, "mid": None, "out.0": None}),
        ("late:aligned", {"in.4": None, "in.5": None, "mid": None, "out.0": "aligned"}),
    ],
)
def test_which_heads_of_a_block_are_chosen(text, heads):
    answer = told(text)
    assert {block["address"]: block["heads"] for block in answer["blocks"]} == heads
    assert answer["problem"] is None
    assert told("mid:h1, mid:aligned")["problem"] == "'mid.0:h1' and 'mid.0:aligned'; allowed: one of them"


def test_what_counted_items_are_here():
    answer = told("d0-d1, u0, m0.0, in.4, d2")
    assert answer["counted"] == {"d0-1": "in.4-5", "u0": "out.0", "m0.0": "mid"}
    assert answer["unknown"] == ["d2"]
    assert answer["problem"] == "'d2'; this model has: d0-1, m0, u0, that is in.4-5, mid, out.0"
    assert told("in.4")["counted"] == {}
    # A click writes the model's own addresses.
    assert told("d0", "mid")["text"] == "in.4, mid"


def test_what_the_model_lacks_and_what_cannot_be_read():
    answer = told("mid, in.9, joint.3")
    assert chosen(answer) == {"mid": 1}
    assert answer["unknown"] == ["in.9", "joint.3"]
    assert "this model has: in.4-5, mid, out.0" in answer["problem"]
    answer = told("blocks.1")
    assert chosen(answer) == {}
    assert answer["problem"].startswith("'blocks.1'; allowed: ")


@pytest.mark.parametrize(
    ("text", "toggle", "expected"),
    [
        # A click takes the place of auto, also one on what auto stands for.
        ("auto", "in.4", "in.4"),
        (" AUTO", "out.0", "out.0"),
        ("auto", "mid", "mid"),
        ("late", "in.4", "in.4, out.0"),
        ("all", "in.4", "in.5, mid, out.0"),
        ("in.4, mid", "mid", "in.4"),
        ("in.4.1, mid", "in.4", "in.4, mid"),
        ("in.4.1, mid", "mid", "in.4.1"),
        ("mid", "mid", "mid"),
        ("nonsense!", "out.0", "out.0"),
        ("mid, joint.3", "out.0", "mid, out.0"),
        ("mid", "joint.3", "mid"),
        ("mid:h1,2, joint.3", "out.0", "mid:h1,2, out.0"),
        ("in.4.0:h0, in.5:aligned", "mid", "in.4.0:h0, in.5:aligned, mid"),
        ("in.4:h0, mid:h1", "mid", "in.4:h0, mid"),
        ("in.4:h0, mid", "mid", "in.4:h0"),
        ("auto:aligned", "in.4", "in.4, mid:aligned"),
    ],
)
def test_a_click_changes_a_blocks_side(text, toggle, expected):
    assert told(text, toggle)["text"] == expected


@pytest.mark.parametrize(
    ("text", "toggle", "note"),
    [
        ("mid", "mid", "mid is the only block that is weakened"),
        ("mid", "joint.3", "This model has no joint.3."),
        ("mid", "out.0", None),
        ("mid", "", None),
    ],
)
def test_a_click_that_changes_nothing_says_why(text, toggle, note):
    answer = told(text, toggle)
    assert (answer["note"] or "").startswith(note or "") if note else answer["note"] is None
    assert answer["text"] == (text if note or not toggle else "mid, out.0")
