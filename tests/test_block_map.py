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


# in.5 isn't known.
COUNTS = {Address("in", 4, 0): 4, Address("in", 4, 1): 4, Address("mid", 0, 0): 4, Address("out", 0, 0): 8}


def told(blocks="auto", toggle=""):
    return inventory(FamilyDouble(), ADDRESSES, blocks, toggle, COUNTS)


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


@pytest.mark.parametrize(
    ("text", "heads"),
    [
        ("auto", {"in.4": "0000", "in.5": None, "mid": "1111", "out.0": "00000000"}),
        ("mid:h0,2-3, in.4:h1, in.5:h1", {"in.4": "0100", "in.5": None, "mid": "1011", "out.0": "00000000"}),
        ("in.4.0:h0, in.4.1, out.0:aligned", {"in.4": "1???", "in.5": None, "mid": "0000", "out.0": "00000000"}),
        ("in.4.1", {"in.4": "????", "in.5": None, "mid": "0000", "out.0": "00000000"}),
    ],
)
def test_a_block_opens_into_its_heads(text, heads):
    marks = {"true": "1", "mixed": "?", "false": "0"}
    found = {
        block["address"]: block["each_head"] and "".join(map(marks.get, block["each_head"]))
        for block in told(text)["blocks"]
    }
    assert found == heads


@pytest.mark.parametrize(
    ("text", "toggle", "expected"),
    [
        # Heads of the block as auto has it: on where it wasn't chosen, off where it was.
        ("auto", "mid:h1", "mid:h0,2-3"),
        ("auto", "in.4:h1", "in.4:h1"),
        ("mid, out.0", "mid:h3", "mid:h0-2, out.0"),
        ("mid:h0-2, out.0", "mid:h3", "mid, out.0"),
        ("mid:h1, out.0:h0", "mid:h1", "out.0:h0"),
        ("mid:h1", "mid:h0,1", "mid:h0-1"),
        ("in.4.0:h0, mid", "in.4:h0", "in.4:h0, mid"),
        ("in.4.0, in.4.1:h2", "in.4:h2", "in.4.0:h0-1,3"),
        ("mid:aligned", "mid:h2", "mid:h2"),
        ("mid:h2", "mid:aligned", "mid:aligned"),
        ("mid:aligned", "mid:aligned", "mid"),
        ("late", "mid:aligned", "mid:aligned, out.0"),
        ("all:h0", "out.0:h7", "in.4-5:h0, mid:h0, out.0:h0,7"),
        ("d0:h1", "mid:h1", "in.4:h1, mid:h1"),
    ],
)
def test_a_click_changes_a_heads_side(text, toggle, expected):
    answer = told(text, toggle)
    assert (answer["text"], answer["note"], answer["problem"]) == (expected, None, None)


@pytest.mark.parametrize(
    ("text", "toggle", "note"),
    [
        ("mid:h2", "mid:h2", "Only mid:h2 is weakened. Choose another head or block first"),
        ("mid", "mid:h4", "'mid.0:h4'; mid.0 has: heads 0 to 3"),
        ("mid", "in.5:h0", "ASAG knows the heads of in.5 once the model is loaded. Generate a picture first."),
        ("mid", "in.9:h0", "This model has no in.9."),
        ("mid", "mid:x", "'mid:x'; allowed: heads such as"),
    ],
)
def test_a_click_on_heads_that_changes_nothing_says_why(text, toggle, note):
    answer = told(text, toggle)
    assert (answer["text"], answer["note"][: len(note)]) == (text, note)


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
        ("mid", "mid", "Only mid is weakened. Choose another block first"),
        ("mid", "joint.3", "This model has no joint.3."),
        ("mid", "x" * 1000, f"This model has no {'x' * 60}."),
        ("mid", "out.0", None),
        ("mid", "", None),
    ],
)
def test_a_click_that_changes_nothing_says_why(text, toggle, note):
    answer = told(text, toggle)
    assert (answer["note"] or "").startswith(note or "") if note else answer["note"] is None
    assert answer["text"] == (text if note or not toggle else "mid, out.0")
