"""The published cell: its tables and its place are what the measured lines say."""

from pathlib import Path

from research.asag.cell import fingerprint, run
from research.asag.cell.choice import choose
from research.lines import read_lines

FOLDER = Path(__file__).parents[4] / "research" / "asag"
LINES = read_lines(FOLDER / "results" / "cell-renderings-unet.jsonl")
FINGERPRINT = read_lines(FOLDER / "results" / "fingerprint-renderings-unet.jsonl")


def test_the_cell_was_guided_where_the_rule_says():
    choice = choose(FINGERPRINT)
    assert {line["settings"]["blocks"] for line in LINES if line["settings"]} == {choice.blocks}
    assert {line["weights"] for line in (*LINES, *FINGERPRINT)} == {LINES[0]["weights"]}
    assert (FOLDER / "results" / "cell-renderings-unet.md").read_text() == run.page(LINES, choice)


def test_the_page_has_the_tables_of_the_lines():
    page = (FOLDER / "protocol-cell.md").read_text()
    assert run.table(LINES) in page
    head, rule, *rows = fingerprint.table(FINGERPRINT).splitlines()
    shown = page[page.index(head) :].split("\n\n")[0].splitlines()
    assert set(shown) <= {head, rule, *rows}
    assert {row for row in rows if "| all |" in row} <= set(shown)
    assert len(shown) == 2 + 6 + 5


def test_what_the_page_says_in_words_holds():
    by = {line["method"]: {name: each["value"] for name, each in line["metrics"].items()} for line in LINES}
    others = ("uniform", "seg", "pag")
    assert all(by["asag"]["fd_network"] < by[each]["fd_network"] for each in others)
    assert all(by["asag"]["fd"] > by[each]["fd"] for each in others)
    for name in ("fd", "fd_network"):
        assert min(by, key=lambda each: by[each][name]) == "cfg"
    assert max(by, key=lambda each: by[each]["name_right"]) == "cfg"
    for name in ("contrast", "saturation", "clipped"):
        assert max(by, key=lambda each: by[each][name]) == "asag"
