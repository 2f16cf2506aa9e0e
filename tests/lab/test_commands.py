"""The command line: help and mistakes answer without anything heavy, and name what is wrong and what is allowed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import asag.__main__
import research.__main__
from asag.lab import argument_types, arguments
from research import arguments as research_arguments

ROOT = Path(__file__).parents[2]

# Ends with an error as soon as one of these is imported; the rest is `python -m` that program.
WITHOUT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
from {program}.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
HEAVY = ("torch", "diffusers", "gradio", "transformers", "numpy", "matplotlib", "PIL", "ray", "tqdm", "uvicorn")


def run(program: str, *argv: str, without: tuple[str, ...] = HEAVY) -> subprocess.CompletedProcess[str]:
    code = WITHOUT.format(packages=without, program=program)
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, cwd=ROOT, timeout=120)


RENDERINGS = Path("asag", "lab", "renderings")
UNET, MMDIT = str(RENDERINGS / "model"), str(RENDERINGS / "model_mmdit")
PROGRAMS = {"asag": asag.__main__.COMMANDS, "research": research.__main__.COMMANDS}
HELPED = [(program, name) for program, commands in PROGRAMS.items() for name in commands]


@pytest.mark.parametrize(("program", "name"), HELPED)
def test_help_needs_nothing_heavy_and_names_the_command(program: str, name: str) -> None:
    found = run(program, name, "--help")
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith(f"usage: python -m {program} {name} ")


@pytest.mark.parametrize(("program", "name"), HELPED)
def test_help_says_what_every_option_is_for_and_its_default(
    program: str, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        PROGRAMS[program][name].read(["--help"])
    for entry in re.split(r"\n  (?=-)", capsys.readouterr().out)[1:]:
        option, text = (re.sub(r"\n\s+|\s{3,}", "  ", entry) + "  ").split("  ", 1)
        assert text.strip(), f"{option}: no help"
        assert "(default: None)" not in text
        if option.split()[0] in ("--steps", "--seed", "--threads", "--batch", "--minutes", "--samples", "--port"):
            assert "default: " in text


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_command_that_does_not_exist_is_named_beside_those_that_do(program: str) -> None:
    found = run(program, "nonsense")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith(
        f"{program}: there is no command 'nonsense'; allowed: {next(iter(PROGRAMS[program]))}, "
    )
    assert all(f"  {name} " in found.stderr for name in PROGRAMS[program])
    assert run(program, "--help").returncode == 0
    assert run(program).returncode == 2


@pytest.mark.parametrize(
    ("program", "argv", "message"),
    [
        ("asag", ("demo", "--samples", "3"), "--samples: 3; allowed: at least 8"),
        ("asag", ("demo", "--shapes", "--model", UNET), f"--model: {UNET}; allowed: only without --shapes"),
        (
            "asag",
            ("demo", "--model", MMDIT),
            f"--model: {MMDIT} has no unet/config.json; allowed: the folder of a UNet",
        ),
        ("asag", ("demo", "--out", "README.md"), "--out: README.md is a file, or in one; allowed: a folder"),
        ("asag", ("quality", "--model", "nowhere"), "--model: nowhere has no unet/config.json, scheduler/scheduler"),
        ("asag", ("quality", "--held-out"), "--held-out: allowed: only with a model of renderings"),
        ("asag", ("quality", "--judge", MMDIT), f"--judge: {MMDIT} has no judge.json; allowed: the folder of a class"),
        ("asag", ("quality", "--guidance", "2", "nan"), "--guidance: nan; allowed: at least 0"),
        ("asag", ("quality", "--sheet", "docs"), "--sheet: docs is a folder; allowed: a file's name"),
        ("asag", ("train", "--rate", "0"), "--rate: 0; allowed: above 0"),
        ("asag", ("train", "--batch", "many"), "--batch: 'many'; allowed: a whole number"),
        ("asag", ("train", "--minutes", "soon"), "--minutes: 'soon'; allowed: a number"),
        ("asag", ("playground", "--port", "65536"), "--port: 65536; allowed: at least 1, at most 65535"),
        ("research", ("pairs", "--answers", "nowhere"), "--answers: nowhere isn't there; allowed: a path that is"),
        ("research", ("choose", "--model", "asag"), "--model: asag has no unet/config.json"),
        ("asag", ("train", "--parts", "unet", "mmdit"), "--parts: unet mmdit; allowed: one model"),
        ("asag", ("bench", "--pairs", "1"), "--pairs: 1; allowed: at least 2"),
        ("research", ("evaluate", "main", "--share", "2/2"), "'2/2'; allowed: I/N"),
        ("research", ("drifting", "--seeds", "1"), "--seeds: 1; allowed: at least 2"),
    ],
)
def test_a_mistake_in_the_arguments_is_named_before_anything_heavy_is_loaded(
    program: str, argv: tuple[str, ...], message: str
) -> None:
    found = run(program, *argv)
    assert found.returncode == 2
    assert message in found.stderr


@pytest.mark.parametrize(("program", "name"), HELPED)
def test_every_number_of_a_command_has_its_range(program: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare int or float takes 0, -1 and nan, which end in a traceback or, worse, in a picture."""
    parsers: list[arguments.Parser] = []
    monkeypatch.setattr(arguments.Parser, "parse_args", lambda self, argv: parsers.append(self) or sys.exit())
    with pytest.raises(SystemExit):
        PROGRAMS[program][name].read([])
    (parser,) = parsers
    assert [action.dest for action in parser._actions if action.type in (int, float)] == []


def test_the_files_of_a_model_are_those_that_training_exports() -> None:
    for folder, kind in ((ROOT / UNET, argument_types.UNET), (ROOT / MMDIT, argument_types.MMDIT)):
        assert argument_types.pipeline(str(folder)) == argument_types.of_renderings(str(folder)) == folder
        assert (folder / kind).exists()
    assert argument_types.judge(str(ROOT / UNET)) == argument_types.unet_of_renderings(str(ROOT / UNET)) == ROOT / UNET


@pytest.mark.parametrize(
    ("program", "name", "missing", "how"),
    [
        ("asag", "playground", "gradio", "`make playground` installs it"),
        ("asag", "demo", "matplotlib", "pip install -e .[demo] brings it"),
        ("research", "drifting", "numpy", "pip install -e .[evidence] brings it"),
    ],
)
def test_a_missing_package_is_one_line_that_says_how_to_get_it(program: str, name: str, missing: str, how: str) -> None:
    found = run(program, name, without=(missing,))
    assert found.returncode == 2
    assert found.stderr.splitlines() == [f"python -m {program} {name}: the package {missing} is missing: {how}"]


def test_the_names_that_are_listed_are_those_of_the_tables() -> None:
    from asag.lab import rows
    from asag.lab.bench import cli, measure
    from asag.lab.embedded import shipped, shipped_mmdit, subjects
    from asag.lab.renderings import shipped as renderings
    from research.asag import evaluate, metrics, plans, result_files, sampling
    from research.drifting import data

    assert all(cli.case_names(name, quick=True) for name in arguments.BENCHES)
    assert tuple(measure.CLOCKS) == arguments.CLOCKS
    assert arguments.MODEL == shipped.MODEL
    assert arguments.demo(["--shapes"]).steps == shipped_mmdit.SOLVER_STEPS
    assert arguments.demo([]).steps == renderings.SOLVER_STEPS
    assert arguments.demo([]).model == arguments.RENDERINGS == renderings.MODEL
    assert tuple(subjects.SUBJECTS) == tuple(sampling.MODELS) == arguments.MODELS
    assert tuple(rows.ROWS) == arguments.ROWS
    assert (*data.MIXTURES, "digits") == research_arguments.DATA
    assert metrics.BLOCKS == research_arguments.LEAST_CAPTIONS
    assert result_files.ROOM / "results" == research_arguments.RESULTS
    assert sorted(plans.PLANS) == sorted(research_arguments.PLANS)
    assert sorted(evaluate.CALIBRATIONS) == sorted(research_arguments.CALIBRATIONS)
