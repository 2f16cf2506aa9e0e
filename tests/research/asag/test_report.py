"""The report says what the lines say and no more. The lines here are made up for the tests."""

import pytest

from research.asag import report, report_counts, report_tables, tables
from research.lines import write_lines

METRICS = tuple(tables.METRICS)


def made_up(method, *, condition="unconditional", protocol="paper", fd=100.0, sigmas=0.0, to_asag=None, **rest):
    """A line whose FD is `sigmas` paired errors from the baseline's and `to_asag` from ASAG's, each error being 1."""
    metrics = {name: {"value": 0.5, "error": 0.01, "to_baseline": 0.0, "to_baseline_error": 1.0} for name in METRICS}
    metrics["fd"] |= {"value": fd, "to_baseline": sigmas}
    if to_asag is not None:
        for name in METRICS:
            metrics[name] |= {"to_asag": to_asag if name == "fd" else 0.0, "to_asag_error": 1.0}
    settings = {} if method in ("vanilla", "cfg") else {"method": method, "scale": 1.5}
    line = {
        "plan": "main",
        "model": "unet",
        "condition": condition,
        "protocol": protocol,
        "method": method,
        "guidance_scale": 1.0,
        "steps": 25,
        "settings": settings,
        "samples": 6000,
        "seeds": [1, 2, 3],
        "metrics": metrics,
    }
    return line | rest


@pytest.mark.parametrize(
    ("sigmas", "shown"),
    [(-2.9, "100"), (2.9, "100"), (-3.1, "**100** (-3σ)"), (4.2, "100 (+4σ)")],
)
def test_a_difference_is_shown_from_three_paired_errors_on_and_bold_if_better(sigmas, shown):
    assert tables.figure_of(made_up("asag", sigmas=sigmas), "fd") == shown


def test_metrics_without_a_better_end_are_never_bold():
    line = made_up("asag")
    line["metrics"]["contrast"] |= {"to_baseline": -9.0}
    assert tables.figure_of(line, "contrast") == "0.5 (-9σ)"


def test_the_baseline_itself_has_no_difference():
    line = made_up("vanilla")
    for metric in line["metrics"].values():
        metric["to_baseline_error"] = 0.0
    assert tables.figure_of(line, "fd") == "100"


def test_the_number_of_pictures_is_shown_where_it_differs():
    lines = [made_up("vanilla", protocol="none"), made_up("asag", samples=750)]
    assert "| the papers' scales | ASAG | 1.5 | 750 | 100 |" in tables.comparison(lines, "unconditional")
    assert report_counts.sampled(lines) == "750 or 6000 pictures a cell, of 3 seeds."
    assert "pictures" not in tables.comparison(lines[:1], "unconditional")
    assert "rows compare by their errors alone" in report_counts.preliminary(lines)
    assert "compare" not in report_counts.preliminary(lines[1:])
    assert not report_counts.preliminary(lines[:1])


@pytest.mark.parametrize(
    ("to_asag", "words"),
    [(5.0, "better: FD (5σ)"), (-5.0, "worse: FD (5σ)"), (2.0, "no clear difference: FD, FD layout")],
)
def test_a_verdict_is_on_asag_and_only_where_errors_support_it(to_asag, words):
    lines = [made_up("asag", to_asag=0.0), made_up("pag", to_asag=to_asag)]
    (sentence,) = tables.verdicts(lines)
    assert sentence.startswith("- unconditional, the papers' scales, ASAG against PAG: ")
    assert words in sentence
    assert ("better" in sentence) == (to_asag == 5.0)


def test_the_papers_figures_stand_beside_its_own_protocol_alone():
    lines = [made_up("asag"), made_up("asag", protocol="best"), made_up("uniform")]
    rows = tables.comparison(lines, "unconditional").splitlines()[2:]
    assert [("92.01 / 0.059 / 10.54" in row) for row in rows] == [True, False, False]
    another = made_up("asag", plan="strong")
    assert "SDXL" not in tables.comparison([another], "unconditional")
    assert "SDXL: FID / KID / IS" in tables.comparison(lines, "unconditional")


def test_rows_tell_their_cfg_scale_where_there_are_several():
    lines = [made_up(name, guidance_scale=g, condition="conditional") for g in (2.0, 4.0) for name in ("cfg", "asag")]
    assert tables.called_in(lines) == ["CFG 2", "ASAG, CFG 2", "CFG 4", "ASAG, CFG 4"]
    assert tables.called_in([made_up("vanilla"), *lines[:2]]) == ["vanilla", "CFG", "ASAG"]
    assert "| ASAG, CFG 4 | 1.5 |" in tables.comparison(lines, "conditional")
    for line in lines:
        if line["method"] == "cfg":
            line["metrics"]["fd"] |= {"to_asag": 4.0, "to_asag_error": 1.0}
    assert [sentence.split(":")[0] for sentence in tables.verdicts(lines)] == [
        f"- conditional, the papers' scales, ASAG against CFG {scale}" for scale in (2, 4)
    ]


@pytest.mark.parametrize(("samples", "cells"), [(750, 1), (6000, 1), (6000, 3)])
def test_too_few_pictures_are_called_preliminary_and_missing_rows_are_counted(samples, cells):
    head = next(report_tables.main_part([made_up("asag", samples=samples)], [], cells))
    assert f"{samples} pictures a cell, of 3 seeds." in head
    assert ("Preliminary" in head) == (samples == 750)
    assert ("2 of 3 rows are missing" in head) == (cells == 3)


def test_a_cell_that_is_set_beside_another_tells_the_difference():
    lines = [made_up("asag", to_asag=-5.0, settings={"adaptive": True}), made_up("asag", settings={"scale": 3.0})]
    rows = tables.sweep(lines, "unconditional", ["fd", "contrast"]).splitlines()[2:]
    assert rows == ["| adaptive True | 100 [-5σ] | 0.5 |", "| scale 3.0 | 100 | 0.5 |"]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "research" / "asag"
    (folder / "results").mkdir(parents=True)
    return folder


def written(folder, page="unet.md"):
    """What a page says after `report`."""
    report.main(["--folder", str(folder)])
    return (folder / page).read_text()


def write(folder, name, *lines):
    write_lines(folder / "results" / f"{name}-unet.jsonl", lines)


UNGUIDED = made_up("vanilla", protocol="none")
SEARCHED = made_up("vanilla", protocol="search")
CFG_SEARCHED = made_up("cfg", condition="conditional", protocol="search")  # of what follows nothing is measured yet


def test_a_model_without_lines_has_no_page(folder):
    assert "## Cost" in written(folder, "README.md")
    assert {path.name for path in folder.glob("*.md")} == {"README.md"}


def test_a_models_page_has_the_main_tables_and_the_verdicts_folded_away(folder):
    write(folder, "main", UNGUIDED, made_up("asag", sigmas=-7.0), made_up("pag", to_asag=4.0))
    text = written(folder)
    assert text.startswith("# The embedded UNet\n")
    assert "| the papers' scales | ASAG | 1.5 | **100** (-7σ) |" in text
    folded = text[text.index("<details>") : text.index("</details>")]
    assert "\n- unconditional, the papers' scales, ASAG against PAG: better: FD (4σ)" in folded
    assert not (folder / "mmdit.md").exists()


def test_searches_have_their_figures_and_say_what_is_missing(folder):
    write(folder, "search", SEARCHED, *(made_up("asag", settings={"method": "asag", "scale": s}) for s in (1, 2)))
    blocks = [made_up("asag", settings={"blocks": name, "scale": 1.5}) for name in ("mid", "in.1")]
    write(folder, "blocks", SEARCHED, *blocks, CFG_SEARCHED)
    write(folder, "strength", SEARCHED, made_up("asag", settings={"strength": 2.0}), CFG_SEARCHED)
    text = written(folder)
    assert "**Incomplete**: 11 of 14 rows are missing." in text[text.index("## Strength λ") :]
    assert "| strength 2.0 |" in text
    assert "| vanilla |" in tables.sweep([SEARCHED], "unconditional", ["fd"])
    has_figures(folder, text, "scales-unet", "blocks-unet")


def has_figures(folder, text, *names):
    for name in names:
        assert f"images/{name}.png" in text
        assert (folder / "images" / f"{name}.png").stat().st_size > 5000


def test_what_the_searches_led_to_is_measured_again(folder):
    chosen = {"method": "asag", "blocks": "in.1", "scale": 0.5}
    asag = made_up("asag", protocol="chosen", settings=chosen)
    write(folder, "confirm", UNGUIDED, made_up("pag", protocol="chosen", to_asag=4.0), asag)
    plain = [("vanilla", "none"), ("asag", "chosen")]
    write(folder, "plain", *(made_up(n, condition="conditional", protocol=w, samples=1500) for n, w in plain))
    with_cfg = {"condition": "conditional", "guidance_scale": 4.0}
    cfg = made_up("cfg", protocol="none", **with_cfg)
    best = [made_up("pag", protocol="best", to_asag=4.0, **with_cfg), made_up("asag", protocol="best", **with_cfg)]
    write(folder, "strong", cfg, *best)
    searched = made_up("pag", protocol="search", settings={"method": "pag", "scale": 0.5}, **with_cfg)
    write(folder, "strong-search", cfg, searched)
    text = written(folder)
    assert "**Unconditional**: blocks in.1, scale 0.5" in text
    assert "- unconditional, the same settings, equal push, ASAG against PAG: better: FD (4σ)" in text
    assert "## Captions without CFG\n\n1500 pictures a cell, of 3 seeds. **Preliminary**: 6000 a cell" in text
    assert "## With CFG 4\n\n6000 pictures a cell, of 3 seeds. Captions and noise" in text
    assert "- conditional, each at its best, ASAG against PAG: better: FD (4σ)" in text
    assert "| PAG, scale 0.5 |" in text[text.index("## With CFG 4, over scales") :]


def test_numbers_of_steps_are_a_table_with_gaps(folder):
    rows = [
        ("cfg", "none", 8),
        ("cfg", "none", 25),
        ("asag", "paper", 8),
        ("asag", "paper", 25),
        ("asag", "chosen", 25),
    ]
    rest = {"condition": "conditional", "guidance_scale": 2.0}
    write(folder, "steps", *(made_up(name, protocol=where, steps=steps, **rest) for name, where, steps in rows))
    text = written(folder)
    assert "|  | 8 steps | 25 steps |" in text
    assert "| CFG 2 + ASAG | 100; 50.0 % | 100; 50.0 % |" in text
    assert "| CFG 2 + ASAG as chosen | – | 100; 50.0 % |" in text


def test_plans_along_sampling_and_pushes_have_tables_and_figures(folder):
    cost = {
        "entropy": {"0": 0.8, "1": 0.9, "2": 0.95, "5": 0.96},
        "columns": {"0": 0.5, "1": 0.2, "2": 0.1, "5": 0.01},
        "needed": {"0.01": 4.0, "0.001": 6.0, "0.0001": 8.0},
    }
    along = {"step": 0, "steps": 1, "tokens": 64, "softmax_entropy": 0.9}
    write(folder, "along", along | {"costs": {"adversarial": cost, "similarity": cost}})
    pushes = {"pictures": 2, "size": 0.01, "to_asag": 1.0, "contrast": 0.25, "to_asag_beyond": 0.75, "method": "asag"}
    write(folder, "directions", *(pushes | {"block": block, "step": n} for block in ("auto", "in.1") for n in (0, 1)))
    text = written(folder)
    assert "| M = QKᵀ (ASAG) | 4.0 | 6.0 | 8.0 | ≈ 2 |" in text
    assert "| ASAG | in.1 | 0.01 | 1.00 | 0.25 | 0.75 |" in text
    has_figures(folder, text, "along-unet", "directions-unet")


def test_the_first_page_has_training_and_cost(folder):
    write_lines(folder / "results" / "training-unet.jsonl", [{"images": 100 * n, "loss": 1.0 / n} for n in (1, 2)])
    ratios = {"full-pass": 1.5, "asag": 1.3, "pag": 1.29, "seg": 1.28}
    step = {"bench": "step", "case": "sd15-mid", "spread": 0.1, "memory_to_cfg": 1.01}
    lines = [step | {"variant": name, "ratio_to_cfg": ratio} for name, ratio in ratios.items()]
    write_lines(folder.parent.parent / "bench" / "results" / "2026-01-01-cpu.jsonl", lines)
    # What isn't measured in this manner, or not on a CPU, is no newer measurement.
    others = [{"kernel": "half_sweep"}, {"bench": "step", "case": "sd15-mid", "modelled ratio, H100": 1.1}]
    write_lines(folder.parent.parent / "bench" / "results" / "2026-02-01-cpu-heads.jsonl", others)
    card = [line | {"ratio_to_cfg": 1.9} for line in lines]
    write_lines(folder.parent.parent / "bench" / "results" / "2026-03-01-a-card.jsonl", card)
    text = written(folder, "README.md")
    assert "| here: sd15-mid, a whole extra pass | 1 | – | – | 1.50 ± 0.10 |" in text
    assert "| here: sd15-mid, sharing work | 1 | 1.29 ± 0.10 | 1.28 ± 0.10 | 1.30 ± 0.10 |" in text
    assert "| here: sd15-mid, sharing work, peak memory | 1 | 1.010 | 1.010 | 1.010 |" in text
    has_figures(folder, text, "losses")


def test_a_text_becomes_a_page_with_its_numbers(folder):
    write(folder, "main", UNGUIDED, made_up("asag", fd=91.5))
    (folder / "texts").mkdir()
    (folder / "texts" / "findings.txt").write_text("FD is {main-unet asag: fd}.\n")
    assert written(folder, "findings.md") == "FD is 91.5.\n"
