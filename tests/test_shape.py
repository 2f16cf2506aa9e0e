"""How long files and functions may be, so that each has one job."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LONGEST_FILE, LONGEST_FUNCTION = 300, 50
FILES = sorted(path for folder in ("asag", "research", "scripts") for path in (ROOT / folder).rglob("*.py"))


def lines_of(function):
    """Without the docstring: what a value does to a picture takes as many lines as it takes."""
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is None:
        return lines
    return lines - (first.end_lineno - first.lineno + 1)


def too_long(source):
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    return [f"{each.name}: {lines_of(each)} lines" for each in functions if lines_of(each) > LONGEST_FUNCTION]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= LONGEST_FILE
    assert not too_long(source)


def test_a_docstring_counts_as_no_line_and_a_statement_does():
    body = "    pass\n" * (LONGEST_FUNCTION - 1)
    assert not too_long('def known():\n    """Says\n    much."""\n' + body)
    assert too_long("def known():\n    pass\n" + body) == [f"known: {LONGEST_FUNCTION + 1} lines"]
