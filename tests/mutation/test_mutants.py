"""The mutants: what is changed, and what is left as it is because no test could see it."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.mutation.mapping import TESTS
from tests.mutation.mutants import mutants_of

CODE = '''"""A text."""
import logging
logger = logging.getLogger(__name__)

def place(call: int, calls: int = 10) -> float:
    """Another text."""
    if call < 0:
        logger.warning("a call before the first")
        raise ValueError(f"call: {call + 1}")
    return call / calls
'''


def test_code_is_changed_and_words_are_not(tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    path.write_text(CODE)
    tree, mutants = mutants_of(str(path))
    before = ast.unparse(tree)
    changed = {(mutant.before, mutant.after) for mutant in mutants}
    assert changed == {
        ("10", "11"),
        ("call < 0", "call <= 0"),
        ("call < 0", "call < 1"),
        ("raise ValueError(f'call: {call + 1}')", "(left out)"),
        ("return call / calls", "return None"),
        ("call / calls", "call * calls"),
    }
    for mutant in mutants:
        with mutant.applied():
            compile(tree, path, "exec")
            assert ast.unparse(tree) != before
        assert ast.unparse(tree) == before


def test_the_mapping_is_of_modules_and_tests_that_there_are() -> None:
    for module, tests in TESTS.items():
        assert Path(module).exists()
        assert all(Path(test).exists() for test in tests)


def test_every_module_has_tests_in_the_mapping() -> None:
    modules = {path.as_posix() for path in Path("asag").rglob("*.py") if path.name != "__init__.py"}
    assert {module for module in modules if not module.startswith("asag/lab/")} == set(TESTS)
