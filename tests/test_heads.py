"""Heads in lists of blocks: what is read and printed, what a list selects, and the errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import strategies as st

from asag import heads as heads_module
from asag.blocks import Address, BlockList, BlocksError, Selector, parse_blocks, select, select_heads, write_list
from asag.heads import Heads
from asag.presets import read_shared, write_shared
from asag.settings import AsagSettings
from asag.webui import infotext
from tests.fuzzing import fuzz
from tests.test_blocks import SDXL

MID = parse_blocks("mid")


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("mid:h0-3", "mid:h0-3"),
        ("out.3.0:h2,5", "out.3.0:h2,5"),
        ("OUT.3.0 : H 2 , 5 , Mid", "out.3.0:h2,5, mid"),
        ("mid:h2,h5,7-9,in.4", "mid:h2,5,7-9, in.4"),
        ("mid:h2,, 5,", "mid:h2,5"),
        ("in.4-8:aligned, mid:h1", "in.4-8:aligned, mid:h1"),
        ("d0-d3:h1,2, u1", "d0-3:h1,2, u1"),
        ("all:aligned", "all:aligned"),
        ("auto:h0,3", "auto:h0,3"),
        ("late:h0-0", "late:h0"),
    ],
)
def test_parse_and_print(text: str, printed: str) -> None:
    assert str(parse_blocks(text)) == printed
    assert parse_blocks(printed) == parse_blocks(text)


def test_what_is_parsed() -> None:
    one, other = Selector("mid", heads=Heads(((0, 0), (2, 5)))), Selector("in", (4, 4), heads=Heads())
    assert parse_blocks("mid:h0,2-5, in.4:aligned") == BlockList((one, other))
    assert parse_blocks("all:h1") == BlockList(keyword="all", heads=Heads(((1, 1),)))


WRONG = ["mid:", "mid:0", "mid:h", "mid:h-1", "mid:hx", "mid:h1-2-3", "mid:best", "mid:h1,x", "mid:aligned,3", "mid, 3"]
WRONG += [":h1", "h1", "mid:h99999", "mid:h1:h2", "mid.0:h1.5", "all:h1, mid", "mid:h3-1", "mid:h١", "all:", "mid:hx,3"]


@pytest.mark.parametrize("text", WRONG)
def test_what_cannot_be_read_is_an_error_that_says_what_is_allowed(text: str) -> None:
    with pytest.raises(BlocksError, match="allowed: "):
        parse_blocks(text)


def test_a_falling_range_says_how_it_rises() -> None:
    with pytest.raises(BlocksError, match="'mid:h3-1'; allowed: ranges that rise, such as h1-3"):
        parse_blocks("mid:h3-1")


SPANS = st.tuples(st.integers(0, 30), st.integers(0, 5)).map(lambda pair: (pair[0], pair[0] + pair[1]))
HEADS = st.none() | st.lists(SPANS, max_size=3).map(lambda spans: Heads(tuple(spans)))
SELECTORS = st.builds(Selector, st.sampled_from(["in", "out"]), SPANS, st.none() | SPANS, st.booleans(), HEADS)


@fuzz(selectors=st.lists(SELECTORS, min_size=1, max_size=5))
def test_every_list_of_blocks_and_heads_is_printed_so_that_it_reads_the_same(selectors: list[Selector]) -> None:
    blocks = BlockList(tuple(selectors))
    assert parse_blocks(str(blocks)) == blocks
    assert parse_blocks(str(blocks).replace(" ", "")) == blocks


@fuzz(spans=st.lists(SPANS, max_size=6))
def test_the_numbers_are_each_named_head_once_in_order(spans: list[tuple[int, int]]) -> None:
    named = {number for first, last in spans for number in range(first, last + 1)}
    assert Heads(tuple(spans)).numbers() == sorted(named)


def test_heads_that_are_named_again_and_again_take_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """All numbers that are listed on the way, counted: 10 000 however often they are named."""
    listed: list[int] = []
    monkeypatch.setattr(
        heads_module, "range", lambda *ends: listed.append(len(range(*ends))) or range(*ends), raising=False
    )
    assert len(Heads(((0, 9999),) * 280).numbers()) == 10_000
    assert sum(listed) == 10_000


def heads(text: str) -> dict[str, str]:
    return {str(address): str(each) for address, each in select_heads(parse_blocks(text), SDXL, MID).items()}


def test_the_heads_of_each_layer_are_those_of_all_items_that_name_it() -> None:
    assert heads("in.4:h1, out.5.0:h0-2, mid.3") == {"in.4.0": "h1", "in.4.1": "h1", "out.5.0": "h0-2"}
    assert heads("mid.0:h1, mid.0-1:h3") == {"mid.0": "h1,3", "mid.1": "h3"}
    assert heads("mid.0:h1, mid.0:h1") == {"mid.0": "h1"}
    assert heads("mid.0:h1, mid, mid.0:h2") == {}
    assert heads("mid, mid.0:aligned") == {}
    assert heads("out.5:aligned, out.5.1:aligned") == {"out.5.0": "aligned", "out.5.1": "aligned"}
    assert set(heads("auto:h2").values()) == {"h2"}
    assert list(heads("auto:h2")) == [f"mid.{layer}" for layer in range(10)]
    assert len(heads("all:aligned")) == len(SDXL)
    assert heads("late:h5") == {f"out.0.{layer}": "h5" for layer in range(10)}
    assert heads("all") == heads("mid") == {}


def test_a_list_selects_the_same_layers_with_heads_and_without() -> None:
    inventory = [(address, address) for address in SDXL]
    for plain, some in (("mid, in.4-8", "mid:h0, in.4-8:h1,2"), ("all", "all:aligned"), ("d0", "d0:h3")):
        assert select(parse_blocks(some), inventory, MID) == select(parse_blocks(plain), inventory, MID)


def test_numbers_and_the_aligned_ones_of_one_layer_contradict_each_other() -> None:
    with pytest.raises(BlocksError, match=r"^'mid.0:h1' and 'mid.0:aligned'; allowed: one of them$"):
        heads("mid:h1, mid.0:aligned")


def test_an_unknown_block_is_named_with_its_heads() -> None:
    with pytest.raises(BlocksError, match=r"^'out.9:h1'; this model has: in.4-5, in.7-8, mid, out.0-5$"):
        heads("out.9:h1")


def test_heads_that_a_layer_lacks_are_named_with_those_it_has() -> None:
    Heads(((0, 7),)).check(Address("mid", 0, 0), 8)
    Heads().check(Address("mid", 0, 0), 1)
    with pytest.raises(BlocksError, match=r"^'mid.0:h0-3,8'; mid.0 has: heads 0 to 7$"):
        Heads(((0, 3), (8, 8))).check(Address("mid", 0, 0), 8)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("in.4:h1, in.5:h1, mid", "in.4-5:h1, mid"),
        ("in.4:h1, in.5:h2, in.7", "in.4:h1, in.5:h2, in.7"),
        ("mid.0:aligned, mid.1-9", "mid.0:aligned, mid.1, mid.2, mid.3, mid.4, mid.5, mid.6, mid.7, mid.8, mid.9"),
        ("in.4.0:h0,3, mid.2", "in.4.0:h0,3, mid.2"),
        ("all:aligned", "in.4-5:aligned, in.7-8:aligned, mid:aligned, out.0-5:aligned"),
    ],
)
def test_a_list_that_is_written_keeps_the_heads(text: str, written: str) -> None:
    chosen = select(parse_blocks(text), [(address, address) for address in SDXL], MID)
    marked = select_heads(parse_blocks(text), SDXL, MID)
    assert write_list(SDXL, chosen, marked) == written
    assert select_heads(parse_blocks(written), SDXL, MID) == marked


@pytest.mark.parametrize("blocks", ["mid:h2,5, out.3-5:aligned", "all:aligned", "late:h0-3"])
def test_infotexts_and_shared_presets_carry_heads(blocks: str) -> None:
    settings = AsagSettings(enabled=True, blocks=blocks, hires_blocks="mid:h1", amount=0.25)
    text = infotext.write(settings)
    assert text == f"scale 1.5; blocks {blocks}; hires_blocks mid:h1; amount 0.25"
    assert infotext.read({infotext.KEY: text}) == settings
    line = write_shared("Mine", replace(settings, enabled=False))
    assert read_shared(line) == ("Mine", replace(settings, enabled=False))
