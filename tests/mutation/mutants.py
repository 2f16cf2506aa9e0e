"""The mutants of a module: one small change of its code each. What only words a message or labels a field stays."""

from __future__ import annotations

import ast
import copy
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
CALLS = {"any": "all", "all": "any", "min": "max", "max": "min"}
METHODS = {**CALLS, "amax": "amin", "amin": "amax", "mean": "sum", "sum": "mean"}
# A name, key or address; a text with blanks is for people.
KEY = re.compile(r"[A-Za-z_][\w./:-]{0,40}")
FOR_PEOPLE = {"label", "help", "info", "title", "group", "placeholder"}
# How a figure looks.
FOR_PEOPLE |= {
    "color",
    "fontsize",
    "fontweight",
    "linewidth",
    "linestyle",
    "marker",
    "markersize",
    "labelsize",
    "alpha",
}
FOR_PEOPLE |= {"pad", "w_pad", "h_pad", "fraction", "rotation", "facecolor", "edgecolor", "labelcolor", "loc"}
NEVER = (ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert, ast.Global, ast.Nonlocal)
TYPES = {"annotation", "returns", "type_comment", "ctx"}


@dataclass
class Mutant:
    """`holder.field` (at `index`, where it is a list) becomes `node`. `lines` are those of the statement."""

    path: str
    function: str
    lines: range
    before: str
    after: str
    holder: ast.AST
    field: str
    index: int | None
    node: Any
    number: int = 1

    @property
    def key(self) -> str:
        """What names it as long as its line stays as it is."""
        again = f" ({self.number})" if self.number > 1 else ""
        return f"`{self.path}` `{self.function}`: `{self.before}` → `{self.after}`{again}"

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While open, the tree that it was found in is mutated."""
        old = self._set(self.node)
        yield
        self._set(old)

    def _set(self, node: Any) -> Any:
        held = getattr(self.holder, self.field)
        if self.index is None:
            setattr(self.holder, self.field, node)
            return held
        old, held[self.index] = held[self.index], node
        return old


def mutants_of(path: str) -> tuple[ast.Module, list[Mutant]]:
    """The tree of a module and its mutants, in the order of the code."""
    tree = ast.parse(Path(path).read_text())
    mutants = list(_Walk(path).visit(tree, "(module)", range(0)))
    numbers: Counter[str] = Counter()
    for mutant in mutants:
        key = mutant.key
        numbers[key] += 1
        mutant.number = numbers[key]
    return tree, mutants


class _Walk:
    def __init__(self, path: str) -> None:
        self.path = path

    def visit(self, holder: ast.AST, function: str, lines: range) -> Iterator[Mutant]:
        for field, value in ast.iter_fields(holder):
            if field in TYPES:
                continue
            for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if not isinstance(child, ast.AST) or _is_for_people(child, holder, field, index):
                    continue
                inside = child.name if isinstance(child, (ast.FunctionDef, ast.ClassDef)) else ""
                name = ".".join(filter(None, [function if function != "(module)" else "", inside])) or "(module)"
                # Defaults and decorators belong to what is around the function.
                own = function if isinstance(holder, ast.FunctionDef) and field == "decorator_list" else name
                own_lines = _span(child) if isinstance(child, ast.stmt) else lines
                for node in _replacements(child):
                    shown = (holder, child) if isinstance(holder, ast.expr) else (child, child)
                    yield self._mutant(holder, field, index, child, node, own, own_lines, shown[0])
                if not isinstance(child, ast.Raise):
                    yield from self.visit(child, own, own_lines)

    def _mutant(
        self, holder: ast.AST, field: str, index: int | None, child: ast.AST, node: Any, function: str, lines: range,
        shown: ast.AST,
    ) -> Mutant:  # fmt: skip
        before = _text(shown)
        mutant = Mutant(self.path, function, lines, before, "", holder, field, index, node)
        with mutant.applied():
            mutant.after = _text(node if shown is child else shown)
        return mutant


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.If) and isinstance(node.test, ast.Constant):
        return "(left out)"
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 110 else text[:107] + "..."


def _span(statement: ast.stmt) -> range:
    """The lines of a statement, or of the head of one that holds others."""
    body = getattr(statement, "body", None)
    end = body[0].lineno if body else statement.end_lineno + 1
    return range(statement.lineno, max(end, statement.lineno + 1))


def _is_for_people(node: ast.AST, holder: ast.AST, field: str, index: int | None) -> bool:
    if isinstance(node, NEVER):
        return True
    if isinstance(node, ast.Expr) and (isinstance(node.value, ast.Constant) or _callee(node.value) == "logger"):
        return True
    if isinstance(node, ast.Raise) and "NotImplementedError" in ast.dump(node):
        return True
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        return True
    if isinstance(node, ast.keyword) and node.arg in FOR_PEOPLE:
        return True
    if isinstance(node, ast.Call) and _callee(node) == "TypeVar":
        return True
    return isinstance(holder, ast.Call) and _callee(holder) == "option" and field == "args" and index in (1, 2)


def _callee(node: ast.AST) -> str:
    """The first name of what is called: `logger` for logger.warning(…)."""
    while isinstance(node, (ast.Call, ast.Attribute)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _replacements(node: ast.AST) -> Iterator[Any]:
    if isinstance(node, ast.expr):
        yield from _expressions(node)
    elif isinstance(node, ast.stmt):
        yield from _statements(node)
    for field in ("test", "ifs"):
        tests = getattr(node, field, None)
        for index, test in enumerate(tests if isinstance(tests, list) else [tests]):
            if isinstance(test, (ast.Name, ast.Call, ast.Attribute, ast.NamedExpr, ast.Subscript)):
                negated = ast.copy_location(ast.UnaryOp(ast.Not(), test), test)
                changed = copy.copy(node)
                setattr(changed, field, [*tests[:index], negated, *tests[index + 1 :]] if field == "ifs" else negated)
                yield changed


def _expressions(node: ast.expr) -> Iterator[ast.expr]:
    def like(changed: ast.expr) -> ast.expr:
        return ast.copy_location(changed, node)

    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield like(ast.Constant(not node.value))
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield like(ast.Constant(node.value + 1))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and KEY.fullmatch(node.value):
        yield like(ast.Constant("XX" + node.value))
    elif isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            operators = [*node.ops[:index], COMPARISONS[type(operator)](), *node.ops[index + 1 :]]
            yield like(ast.Compare(node.left, operators, node.comparators))
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        yield like(ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right))
    elif isinstance(node, ast.BoolOp):
        yield like(ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
        yield node.operand
    elif isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id in CALLS:
            yield like(ast.Call(like(ast.Name(CALLS[node.func.id], ast.Load())), node.args, node.keywords))
        elif isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
            called = like(ast.Attribute(node.func.value, METHODS[node.func.attr], ast.Load()))
            yield like(ast.Call(called, node.args, node.keywords))


def _statements(node: ast.stmt) -> Iterator[ast.stmt]:
    def like(changed: ast.stmt) -> ast.stmt:
        return ast.copy_location(changed, node)

    def never(body: list[ast.stmt]) -> ast.stmt:
        # Left out, but still compiled: what is a closure or a generator stays one.
        return like(ast.If(ast.copy_location(ast.Constant(False), node), body, []))

    call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    stored = isinstance(node, ast.Assign) and isinstance(node.targets[0], (ast.Attribute, ast.Subscript))
    if call or stored or isinstance(node, (ast.Raise, ast.Delete)):
        yield never([node])
    elif isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC:
        yield like(ast.AugAssign(node.target, ARITHMETIC[type(node.op)](), node.value))
    elif isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        yield like(ast.Return(ast.copy_location(ast.Constant(None), node)))
    elif isinstance(node, ast.Break):
        yield like(ast.Continue())
    elif isinstance(node, ast.Continue):
        yield like(ast.Break())
    elif isinstance(node, ast.With) and all(item.optional_vars is None for item in node.items):
        entered = [item.context_expr for item in node.items]
        test = ast.BoolOp(ast.Or(), [ast.Constant(True), *entered])
        yield ast.fix_missing_locations(like(ast.If(test, node.body, [])))
