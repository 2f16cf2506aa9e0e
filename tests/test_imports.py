"""Which part of the code may import which: see docs/developers.md."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What each WebUI ships, and what torch itself needs; everything else is an extra.
SHIPPED = {"asag", "torch", "gradio", "numpy", "einops", "safetensors", "matplotlib", "PIL", "fastapi", "filelock"}
# Used where it is there, on CUDA: asag.kernel_choice.
OPTIONAL = {"triton"}
HOST_MODULES = {"modules", "modules_forge", "backend", "ldm_patched", "ldm", "sgm", "k_diffusion", "lib_controlnet"}


def imported(path):
    """The dotted names that a file imports, with those inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports by full names, please"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_of(folder, *without):
    found = [
        path for path in sorted((ROOT / folder).rglob("*.py")) if not any(each in path.parents for each in without)
    ]
    assert found, folder
    return found


def names(paths):
    return {(str(path.relative_to(ROOT)), name) for path in paths for name in imported(path)}


LAB = ROOT / "asag" / "lab"


def test_asag_never_imports_research():
    assert not [pair for pair in names(files_of("asag")) if pair[1].split(".")[0] == "research"]


def test_what_runs_in_a_webui_never_imports_the_lab():
    assert not [
        pair for pair in names(files_of("asag", LAB)) if pair[1].startswith("asag.lab") and "__main__" not in pair[0]
    ]


def test_host_modules_are_imported_by_hosts_and_the_script_alone():
    others = files_of("asag", ROOT / "asag" / "hosts", ROOT / "asag" / "webui")
    assert not [pair for pair in names(others) if pair[1].split(".")[0] in HOST_MODULES]


def test_diffusers_is_imported_by_the_lab_and_its_own_hosts_alone():
    others = [path for path in files_of("asag", LAB) if not path.name.startswith("diffusers")]
    assert not [pair for pair in names(others) if pair[1].split(".")[0] == "diffusers"]


@pytest.mark.parametrize(
    ("part", "forbidden"),
    [
        ("precision.py", ("asag.",)),
        ("echo.py", ("asag.",)),
        ("sinkhorn.py", ("asag.attention", "asag.operators", "asag.hosts", "asag.webui", "asag.models")),
        ("guidance.py", ("asag.attention", "asag.operators", "asag.hosts", "asag.webui", "asag.models")),
        ("blocks.py", ("asag.attention", "asag.operators", "asag.hosts", "asag.webui", "asag.models", "torch")),
        ("attention.py", ("asag.hosts", "asag.webui", "asag.models", "asag.operators")),
        ("operators.py", ("asag.hosts", "asag.webui", "asag.models")),
        ("models", ("asag.hosts", "asag.webui", "asag.settings")),
        ("perturb.py", ("asag.hosts", "asag.webui", "asag.settings")),
        ("branch.py", ("asag.hosts", "asag.webui", "asag.settings")),
        ("hosts", ("asag.webui",)),
    ],
)
def test_dependencies_point_one_way(part, forbidden):
    path = ROOT / "asag" / part
    found = names([path] if path.is_file() else files_of(f"asag/{part}"))
    assert not [pair for pair in found if pair[1].startswith(forbidden)]


def test_inside_a_webui_nothing_is_needed_that_it_lacks():
    """Outside hosts/, which imports its host, and diffusers*.py, which is for diffusers."""
    allowed = SHIPPED | OPTIONAL | HOST_MODULES | set(sys.stdlib_module_names)
    inside = [path for path in files_of("asag", LAB) if not path.name.startswith("diffusers")]
    assert not [pair for pair in names(inside) if pair[1].split(".")[0] not in allowed]
