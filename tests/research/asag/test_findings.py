"""The numbers in the prose are those of the measured lines, on the pages that `report` writes and on the others."""

import re
from pathlib import Path

import pytest

from research.asag import report, report_figures, report_index, report_prose
from research.asag.report_numbers import Numbers, PlaceError
from research.drifting import report as drifting_report
from research.guidance_breaks import report as guidance_breaks_report
from research.lines import read_lines, write_lines

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "research" / "asag"
# What other pages say of the lines, with the numbers' places in braces. See research/asag/report_numbers.py.
SENTENCES = {
    "README.md": [
        "by {main-unet c paper asag: fd % off} to {plain-mmdit best asag: fd % off} %",
    ],
    "research/renderings/README.md": [
        "| CFG alone | | {choose method=none: log_probability 3} | "
        "{choose method=none: right % 1} % "
        "| {choose method=none: burnt % 2} % |",
        "| PAG | `all`, scale 0.25 | {choose method=pag blocks=all scale=0.25: log_probability 3} | "
        "{choose method=pag blocks=all scale=0.25: right % 1} % "
        "| {choose method=pag blocks=all scale=0.25: burnt % 2} % |",
        "| SEG | `mid`, scale 0.25 | {choose method=seg blocks=mid scale=0.25: log_probability 3} | "
        "{choose method=seg blocks=mid scale=0.25: right % 1} % "
        "| {choose method=seg blocks=mid scale=0.25: burnt % 2} % |",
        "| ASAG | `in.3`, scale 0.25 | {choose method=asag blocks=in.3 scale=0.25: log_probability 3} | "
        "{choose method=asag blocks=in.3 scale=0.25: right % 1} % "
        "| {choose method=asag blocks=in.3 scale=0.25: burnt % 2} % |",
        "in `all` {choose method=asag blocks=all strength=none contrast=none scale=0.25: burnt % 2} % at 0.25, "
        "{choose method=asag blocks=all strength=none contrast=none scale=0.5: burnt % 2} % at 0.5 and "
        "{choose method=asag blocks=all strength=none contrast=none scale=1: burnt % 2} % at 1.",
        "({choose blocks=all contrast=0: burnt % 2} % at 0.5), but its log-probability, "
        "{choose blocks=all contrast=0: log_probability 3}, is lower",
    ],
    "research/asag/protocol-cell.md": [
        "ASAG's FD ({cell-renderings-unet asag: fd_network 3}) is below the uniform map's ("
        "{cell-renderings-unet uniform: fd_network 3}, "
        "{cell-renderings-unet uniform: fd_network σ to ASAG} σ), SEG's ({cell-renderings-unet seg: fd_network 3}, "
        "{cell-renderings-unet seg: fd_network σ to ASAG} σ) and PAG's ({cell-renderings-unet pag: fd_network 3}, "
        "{cell-renderings-unet pag: fd_network σ to ASAG} σ). Between ASAG and CFG alone ("
        "{cell-renderings-unet cfg: fd_network 3}) there is no clear "
        "difference in FD there ({cell-renderings-unet asag: fd_network σ} σ), and its KID is worse ("
        "{cell-renderings-unet asag: kid_network σ} σ).",
        "worst FD: {cell-renderings-unet asag: fd}, where the uniform map has "
        "{cell-renderings-unet uniform: fd}, SEG {cell-renderings-unet seg: fd}, "
        "PAG {cell-renderings-unet pag: fd} and CFG alone {cell-renderings-unet cfg: fd}.",
        "({cell-renderings-unet asag: moved 3} and {cell-renderings-unet pag: moved 3})",
    ],
    "docs/options.md": [
        "On the small UNet both take {along-unet: mean costs/similarity/needed/0.01 0} to "
        "{along-unet: mean costs/adversarial/needed/0.01 0} for a mean change below 0.01 and "
        "{along-unet: mean costs/adversarial/needed/0.0001 0} below 0.0001",
        "| FD, UNet (500 pictures) | {every-unet cfg: fd} | {every-unet Fast every=none: fd} | "
        "{every-unet Fast every=2: fd} | {every-unet Fast every=3: fd} | {every-unet Fast every=4: fd} |",
        "In the UNet ASAG lowers FD by {every-unet Fast every=none: fd change} ± "
        "{every-unet Fast every=none: fd error} at 1 and by {every-unet Fast every=2: fd change} ± "
        "{every-unet Fast every=2: fd error} at 2.",
        "| FD, MMDiT (500 pictures) | {every-mmdit cfg: fd} | {every-mmdit Fast every=none: fd} | "
        "{every-mmdit Fast every=2: fd} | {every-mmdit Fast every=3: fd} | {every-mmdit Fast every=4: fd} |",
    ],
}
# A number that looks measured; and what a text may have by itself: what was set, and what the papers have.
MEASURED = re.compile(r"\d+\.\d+|\d+(?= [σ%])|(?<=FD )\d+|(?<=KID )\d+|(?<=[→±−])\s*\d+")
GIVEN = re.compile(
    r"[Ss]cale,? (0\.75|0\.8|0\.185|0\.5|1\.5|18\.6)|ASAG at 1\.5|18\.6 for SEG|[Ss]trength 0\.25"
    r"|\| 0\.5 \| 0\.25 \||below 0\.0*1"
    r"|temperature 0\.25|3 σ (on|one time)|[a-z]+\.\d\b|0\.90 and a diversity of 0\.71"
    r"|FID 92\.11 and KID 0\.058|92\.01 and 0\.059|10\.54 to 9\.71|M = 1 − QKᵀ"
)


@pytest.fixture(scope="module")
def numbers():
    return Numbers(ROOT / "research")


def in_one_line(text):
    return " ".join(text.split())


def test_every_page_is_what_the_report_writes(monkeypatch):
    """So no number in them was changed by hand, and none is older than the lines."""
    for name in ("losses", "along", "directions", "scales", "blocks"):
        monkeypatch.setattr(report_figures, name, lambda *given: None)
    monkeypatch.setattr(report_index, "bars", lambda *given: None)
    found = dict(report.pages(FOLDER))
    assert {path.relative_to(ROOT).as_posix() for path in found} == {
        *(f"research/asag/{name}.md" for name in ("README", "unet", "mmdit", "findings")),
        "research/README.md",
    }
    for path, text in found.items():
        assert path.read_text() == text, f"{path}: run `python -m research report`"


def test_the_first_page_has_five_findings_each_a_sentence_a_figure_and_a_link():
    page = (ROOT / "research" / "README.md").read_text()
    findings = re.split(r"(?m)^(?=\*\*\d\. )", page[page.index("## Five findings") : page.index("## Where things are")])
    assert len(findings) == 6
    for finding in findings[1:]:
        sentence = in_one_line(finding.split("**")[1])
        assert sentence.endswith(".")
        assert not re.search(r"[a-z]\. [A-Z]", sentence)
        (figure,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", finding)
        assert (ROOT / "research" / figure).exists()
        assert re.search(r"(?<!!)\[[^\]]+\]\([^)]+\.md", finding)
    assert len(page.splitlines()) <= 60


def test_the_first_pages_bars_are_as_long_as_the_lines_say(monkeypatch):
    drawn = {}
    monkeypatch.setattr(report_index, "bars", lambda panels, path: drawn.update({path.stem: panels}))
    report_index.draw(FOLDER)
    (line,) = [
        each
        for each in read_lines(FOLDER / "results" / "confirm-mmdit.jsonl")
        if (each["condition"], each["method"], each["protocol"]) == ("unconditional", "asag", "chosen")
        and each["settings"].get("strength")
    ]
    fd = line["metrics"]["fd"]
    before = fd["value"] - fd["to_baseline"]
    (gains,), (burning,) = (drawn[f"index-{name}"].values() for name in ("gains", "burning"))
    first, second = gains["MMDiT, no captions, Clean"]
    assert first.value == pytest.approx(100 * (fd["value"] / before - 1))
    assert first.error == pytest.approx(100 * fd["to_baseline_error"] / before)
    assert first.colour != second.colour
    assert burning["ASAG, preset Clean"][0].value == fd["value"]
    assert burning["no guidance"][0].value == pytest.approx(before)
    seg = next(
        each for each in read_lines(FOLDER / "results" / "cell-renderings-unet.jsonl") if each["method"] == "seg"
    )
    for name, panel in zip(("fd", "fd_network"), drawn["index-cell"].values(), strict=True):
        metric, (bar,) = seg["metrics"][name], panel["+ SEG"]
        assert (bar.value, bar.error) == (metric["value"], metric["to_asag_error"])


def test_the_other_papers_pages_are_what_their_lines_say():
    breaks, drifting = ROOT / "research" / "guidance_breaks", ROOT / "research" / "drifting"
    toy, pictures = (read_lines(breaks / "results" / f"adaptive-{name}.jsonl") for name in ("toy", "classifier"))
    assert (breaks / "README.md").read_text() == guidance_breaks_report.page(toy, pictures)
    found = read_lines(drifting / "results" / "drifting.jsonl")
    assert (drifting / "README.md").read_text() == drifting_report.document(found)


@pytest.mark.parametrize("name", report_prose.PAGES)
def test_a_text_has_no_measured_number_by_itself(name):
    text = re.sub(r"\{[^{}]+\}|\]\([^)]*\)", "", (FOLDER / "texts" / name).read_text())
    assert MEASURED.findall(GIVEN.sub("", in_one_line(text))) == []


@pytest.mark.parametrize("page", SENTENCES)
def test_other_pages_have_the_numbers_of_the_lines(page, numbers):
    text = in_one_line((ROOT / page).read_text())
    for sentence in SENTENCES[page]:
        assert numbers.fill(sentence) in text


def made_up(fd, *, method="asag", **settings):
    """A line whose FD is 10 below the baseline's, with an error of 4, and 2 above the rival's, with an error of 0.5."""
    metric = {"value": fd, "to_baseline": -10.0, "to_baseline_error": 4.0, "to_asag": 2.0, "to_asag_error": 0.5}
    metrics = {"fd": metric, "right": metric | {"value": 0.955}, "kid": metric | {"value": 0.0101}}
    return {"condition": "conditional", "method": method, "protocol": "best", "settings": settings, "metrics": metrics}


@pytest.fixture
def two_lines(tmp_path):
    lines = [made_up(90.0, scale=1.5), made_up(240.0, method="paper plan", scale=2.0)]
    write_lines(tmp_path / "some" / "results" / "main.jsonl", lines)
    write_lines(tmp_path / "some" / "results" / "along.jsonl", [{"step": n, "deep": {"0.01": [n, 0]}} for n in (1, 2)])
    return Numbers(tmp_path)


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("main c best scale=1.5: fd", "90.0"),
        ("main paper-plan: fd", "240"),
        ("main asag: fd 3", "90.000"),
        ("main asag: right", "95.5"),
        ("main asag: kid", "10.1"),
        ("main asag: fd σ", "2.5"),
        ("main asag: fd σ to ASAG", "4.0"),
        ("main asag: fd change", "10.0"),
        ("main asag: fd error", "4.0"),
        ("main asag: fd % off", "10"),
        ("main strength=none scale=1.5,7: fd", "90.0"),
        ("main: least fd", "90.0"),
        ("main: most fd", "240"),
        ("main: mean fd", "165"),
        ("along: mean deep/0.01/0 1", "1.5"),
        ("along step=2: step % 0", "200"),
    ],
)
def test_a_place_is_the_number_of_its_line(two_lines, place, shown):
    assert two_lines.fill(f"a {{{place}}} b") == f"a {shown} b"


@pytest.mark.parametrize(
    ("place", "why"), [("main: fd", "2 lines fit"), ("main u: fd", "0 lines"), ("x: fd", "0 files")]
)
def test_a_place_that_names_no_line_or_several_is_refused(two_lines, place, why):
    with pytest.raises(PlaceError, match=why):
        two_lines.fill(f"{{{place}}}")


def test_wrapping_keeps_tables_lists_and_a_number_with_its_unit():
    text = "word " * 23 + "1234 σ\n- one\n  two\n\n  | a | b |\n\nend\n"
    lines = report_prose.wrapped(text).splitlines()
    assert lines == [("word " * 23).strip(), "1234 σ", "- one two", "", "  | a | b |", "", "end"]
