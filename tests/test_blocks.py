"""The parser with malice, and the selection from inventories."""

import pytest
from hypothesis import strategies as st

from asag.blocks import PARTS, Address, BlockList, BlocksError, Selector, parse_blocks, select, summarize, write_list
from tests.fuzzing import fuzz

SDXL = [Address("in", block, layer) for block, depth in ((4, 2), (5, 2), (7, 10), (8, 10)) for layer in range(depth)]
SDXL += [Address("mid", 0, layer) for layer in range(10)]
SDXL += [Address("out", block, layer) for block in range(6) for layer in range(10 if block < 3 else 2)]
INVENTORY = [(address, str(address)) for address in SDXL]
MID = parse_blocks("mid")


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("auto", "auto"),
        (" ALL ", "all"),
        ("Late", "late"),
        ("mid", "mid"),
        ("in.4-8,out.3.0", "in.4-8, out.3.0"),
        ("Single.10-19 , double.3,", "single.10-19, double.3"),
        ("joint.7, layer.5, mid.0-4", "joint.7, layer.5, mid.0-4"),
        ("d4, M0, u3.1", "d4, m0, u3.1"),
        ("m", "m0"),
        ("m0.2-9", "m0.2-9"),
        ("d0-d3, u 1 - 2 . 0", "d0-3, u1-2.0"),
    ],
)
def test_parse_and_print(text, printed):
    assert str(parse_blocks(text)) == printed
    assert parse_blocks(printed) == parse_blocks(text)


UNREADABLE = ["", ",", " ", "blocks.1", "in", "in.", "in.-1", "in.1.", "in.1.2.3", "in.8-4", "in.1.3-2", "mid.x"]
UNREADABLE += ["m1", "m0-1", "d", "d-1", "d0-u3", "d3-0", "d0-d1-d2", "d1.2.3"]
UNREADABLE += ["mid.0.1", "auto, mid", "all,all", "in.99999", "in.1;out.2", "in.١", "in.1\n.2", "in.4 - 8"]
UNREADABLE += ["(" * 500, "mid," * 2000]


@pytest.mark.parametrize("text", UNREADABLE)
def test_what_cannot_be_read_is_an_error_that_says_what_is_allowed(text):
    with pytest.raises(BlocksError, match="allowed: "):
        parse_blocks(text)


def test_a_list_has_at_most_2000_characters_and_may_be_a_key():
    longest = "mid," * 500
    assert parse_blocks(longest) == BlockList((Selector("mid"),) * 500)
    with pytest.raises(BlocksError, match="2000 characters"):
        parse_blocks(longest + " ")
    assert len({parse_blocks("mid"), parse_blocks("MID"), parse_blocks("in.4"), Selector("mid"), Selector("mid")}) == 3


spans = st.tuples(st.integers(0, 99), st.integers(0, 99)).map(lambda span: (min(span), max(span)))
selectors = st.builds(Selector, st.sampled_from(PARTS), spans, st.none() | spans) | st.builds(
    Selector, st.sampled_from(["in", "mid", "out"]), spans, st.none() | spans, st.just(True)
)
selectors = selectors.map(
    lambda each: Selector("mid", (0, 0), each.layers, each.counted) if each.part == "mid" else each
)


@fuzz(items=st.lists(selectors, min_size=1, max_size=5))
def test_printed_lists_parse_back(items):
    blocks = BlockList(tuple(items))
    assert parse_blocks(str(blocks)) == blocks


def chosen(text: str) -> list[str]:
    return select(parse_blocks(text), INVENTORY, MID)


def test_mid_means_all_ten_layers_of_sdxl():
    assert chosen("mid") == [f"mid.{layer}" for layer in range(10)]
    assert chosen("auto") == chosen("mid")


def test_late_is_the_decoders_first_block_or_two_thirds_through():
    assert chosen("late") == [f"out.0.{layer}" for layer in range(10)]
    doubles = [Address("double", number, 0) for number in range(19)]
    flux = [(address, str(address)) for address in (*doubles, *(Address("single", number, 0) for number in range(38)))]
    assert select(parse_blocks("late"), flux, MID) == ["single.19.0"]
    both = [(Address("joint", number, layer), f"joint.{number}.{layer}") for number in range(24) for layer in (0, 1)]
    assert select(parse_blocks("late"), both, MID) == ["joint.16.0", "joint.16.1"]
    # SD3.5 has second layers in its first half alone: blocks are counted, not layers.
    some = [each for each in both if each[0].layer == 0 or each[0].block < 13]
    assert select(parse_blocks("late"), some, MID) == ["joint.16.0"]


def test_one_is_not_ten():
    inventory = [(Address("single", block, 0), block) for block in (1, 10, 11, 100)]
    assert select(parse_blocks("single.1"), inventory, MID) == [1]
    assert select(parse_blocks("single.10"), inventory, MID) == [10]


def test_selection_keeps_the_models_order_and_repeats_nothing():
    assert chosen("out.5, in.4, out.3-5") == ["in.4.0", "in.4.1", *(f"out.{b}.{n}" for b in (3, 4, 5) for n in (0, 1))]
    assert chosen("all") == [str(address) for address in SDXL]
    assert chosen("in.7.2-3") == ["in.7.2", "in.7.3"]


@pytest.mark.parametrize("text", ["in.6", "joint.3", "mid, out.9", "out.3.2", "mid.10"])
def test_what_the_model_lacks_is_an_error_that_lists_what_it_has(text):
    with pytest.raises(BlocksError, match=r"this model has: in\.4-5, in\.7-8, mid, out\.0-5"):
        chosen(text)


def test_a_range_takes_what_exists_in_it():
    assert chosen("in.4-6") == ["in.4.0", "in.4.1", "in.5.0", "in.5.1"]


@fuzz(layers=st.sets(st.sampled_from(SDXL), min_size=1))
def test_a_written_list_selects_exactly_the_chosen(layers):
    text = write_list(SDXL, layers)
    assert set(chosen(text)) == {str(address) for address in layers}


def test_a_written_list_is_short():
    whole = [address for address in SDXL if address.block in (4, 5) or address.part == "mid"]
    assert write_list(SDXL, whole) == "in.4-5, mid, out.4-5"
    assert write_list(SDXL, [*whole, Address("in", 7, 3)]) == "in.4-5, in.7.3, mid, out.4-5"


def test_summary_of_nothing():
    assert summarize([]) == "no self-attention"
