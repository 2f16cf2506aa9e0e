"""Where asag/ and scripts/ call out: into a host, its model, torch or the file system. Found by walking the code.

What counts, and what doesn't:

- host: something imported from a host's packages, and a method of an object of the host's: one whose name neither asag
  defines, nor Python's own types and helpers, nor torch's; or one of SHARED_NAMES. In asag/hosts, asag/webui, scripts.
- model: a function that was handed in, or is kept on an object (`original(…)`, `self.inner_model(…)`), and a model's
  layers (`module.to_out(…)`). In the same folders, in asag/models, and where passes branch and are perturbed.
- torch: a function of torch's that computes or allocates. One row for a file: whichever of its calls fails, what comes
  of it is the same. Methods of tensors fail as those do, and aren't listed.
- file: what opens, reads, writes, locks, names or imports a file.

Reading an attribute, arithmetic, gradio's components (built once, by the host's page), matplotlib (behind one `try`)
and asag.lab aren't calls out.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
HOSTS_PACKAGES = ("modules", "ldm", "backend", "ldm_patched", "diffusers")
HOST_FOLDERS = ("asag/hosts/", "asag/webui/", "scripts/")
# They build the page of gradio's components.
PAGE = ("asag/webui/ui.py", "asag/webui/preset_panel.py")
MODEL_FOLDERS = (*HOST_FOLDERS, "asag/models/", "asag/perturb.py", "asag/branch.py")
# Methods of the hosts' objects that are called as one of asag's, Python's or torch's.
SHARED_NAMES = ("clone", "comment", "title", "execute")
FILE_METHODS = frozenset(
    ("open", "read", "read_text", "write_bytes", "stat", "exists", "mkdir", "acquire", "release", "GGUFReader")
)
FILE_FUNCTIONS = ("os.replace", "os.path.abspath", "tempfile.TemporaryDirectory", "TemporaryDirectory", "FileLock")
FILE_FUNCTIONS += ("find_spec", "import_module", "importlib.util.find_spec", "importlib.import_module")
# Of asag's own, called as one of these.
OURS = ("type()", "branch.open", "self.file.read", "self.current", "self.finite", "self._finite", "self.unit")
OURS += (
    "self.guard",
    "self._unit",
    "current.unit",
    "run.reuse.comment",
    "self.undo",
    "self.around",
    "act",
    "read",
    "self.elem_id",
)
# Of torch's: nothing is computed, and next to nothing allocated.
CHEAP = frozenset(
    ("device", "no_grad", "promote_types", "finfo", "autocast", "is_tensor", "get_device_capability", "Generator")
)
# What Python's helpers have: contexts, loggers, patterns, enumerations, functions' signatures.
HELPERS = frozenset(
    ("callback", "enter_context", "pop_all", "warning", "exception", "info", "error", "fullmatch", "groups", "search")
)
HELPERS |= {"modules", "named_modules", "named_parameters", "parameters", "with_name", "with_suffix", "as_posix"}
HELPERS |= {"findall", "bind", "apply_defaults", "_asdict", "_replace", "bit_length", "tobytes", "numpy"}


@dataclass(frozen=True)
class Call:
    """A call out: the file, the function that makes it, what it calls, where it stands, and what kind it is."""

    path: str
    place: str
    callee: str
    line: int
    column: int
    end_column: int
    kind: str

    @property
    def key(self) -> str:
        """One of its own."""
        return f"{self.row} at {self.line}:{self.column}-{self.end_column}"

    @property
    def span(self) -> tuple[int, int, int]:
        """Where it stands in its file: calls of what a call gives begin at the same place."""
        return self.line, self.column, self.end_column

    @property
    def row(self) -> str:
        """The table's row for it."""
        return f"{self.path}: torch" if self.kind == "torch" else f"{self.path}: {self.place}: {self.callee}"


def sources() -> list[Path]:
    found = [path for path in sorted(ROOT.glob("asag/**/*.py")) if "lab" not in path.relative_to(ROOT).parts]
    return [*found, *sorted(ROOT.glob("scripts/*.py"))]


def calls() -> list[Call]:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sources()}
    ours = {
        node.name
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    return [each for path, tree in trees.items() for each in _Walk(path.relative_to(ROOT).as_posix(), ours).of(tree)]


def calls_of(path: str, source: str, ours: set[str]) -> list[Call]:
    """Those of a file; `ours` are the names of functions and classes that asag defines."""
    return _Walk(path, ours).of(ast.parse(source))


class _Walk(ast.NodeVisitor):
    """The calls out of one file."""

    def __init__(self, path: str, ours: set[str]) -> None:
        self.path, self.ours = path, ours
        self.places: list[str] = []
        self.functions = 0
        self.handed_in: list[set[str]] = [set()]
        self.imported: dict[str, str] = {}
        self.found: list[Call] = []

    def of(self, tree: ast.Module) -> list[Call]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                self.imported |= {(name.asname or name.name).split(".")[0]: name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                self.imported |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
        self.visit(tree)
        return self.found

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._inside(node, set())

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        given = node.args
        names = {each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)}
        for each in ast.walk(node):
            if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
                names.add(each.id)
        self.functions += 1
        self._inside(node, names)
        self.functions -= 1

    def _inside(self, node: ast.ClassDef | ast.FunctionDef, names: set[str]) -> None:
        for decorator in node.decorator_list:
            self.visit(decorator)
        self.places.append(node.name)
        self.handed_in.append(self.handed_in[-1] | names)
        for child in node.body:
            self.visit(child)
        self.places.pop()
        self.handed_in.pop()

    def visit_Call(self, node: ast.Call) -> None:
        kind = self._kind(node.func) if self.functions and self.path not in PAGE else ""
        if kind:
            where = node.lineno, node.col_offset, node.end_col_offset or 0
            self.found.append(Call(self.path, ".".join(self.places), _dotted(node.func), *where, kind))
        self.generic_visit(node)

    def _kind(self, function: ast.expr) -> str:
        name = _dotted(function)
        if name in OURS:
            return ""
        first, last = name.split(".")[0], name.rsplit(".", 1)[-1]
        home = self.imported.get(first, "")
        if name in FILE_FUNCTIONS or last in FILE_METHODS:
            return "file"
        if home.split(".")[0] == "torch":
            is_function = home in ("torch", "torch.nn.functional") and last not in CHEAP and last[0].islower()
            return "torch" if is_function else ""
        if home.split(".")[0] in HOSTS_PACKAGES:
            return "host"
        if isinstance(function, ast.Name):
            handed_in = first in self.handed_in[-1] and first not in dir(builtins) and not home
            return "model" if handed_in and self.path.startswith(MODEL_FOLDERS) else ""
        return self._kind_of_method(name, last, home)

    def _kind_of_method(self, name: str, last: str, home: str) -> str:
        if home and not name.startswith("sys.modules[]"):
            return ""
        if last == "forward" and self.path.startswith(MODEL_FOLDERS):
            return "model"
        known = last in self.ours or last in HELPERS or last in _PYTHONS or hasattr(torch.Tensor, last)
        if self.path.startswith("asag/models/") or self.path in MODEL_FOLDERS:
            return "" if known else "model"
        if self.path.startswith(HOST_FOLDERS) and (not known or last in SHARED_NAMES):
            return "host"
        return ""


_PYTHONS = frozenset(name for kind in (dict, list, str, set, tuple, bytes, int, float) for name in dir(kind))


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    if isinstance(node, ast.Call):
        return f"{_dotted(node.func)}()"
    if isinstance(node, ast.Subscript):
        return f"{_dotted(node.value)}[]"
    return "…"


def by_row(found: list[Call]) -> Iterator[tuple[str, list[Call]]]:
    rows: dict[str, list[Call]] = {}
    for each in found:
        rows.setdefault(each.row, []).append(each)
    yield from rows.items()
