"""Mutation testing of `asag/` without `asag/lab`: python -m tests.mutation.run [modules] (`make mutate`).

Torch, the tests and the code are loaded once. The mapped tests of a module run once and tell which lines each of them
comes by, and how long it takes. Then each mutant is put into a forked process, in which the tests that come by its
lines run, the quickest first, until one fails. What only runs while a module is imported is tried in a fork into which
nothing of the project was loaded yet. A mutant is killed when a test fails or the processor time is up.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from tests.mutation.mapping import CHOSEN, TESTS
from tests.mutation.mutants import Mutant, mutants_of
from tests.mutation.report import KILLED, SURVIVED, TIMEOUT, Report

PRELOADED = ("torch", "numpy", "hypothesis", "einops", "transformers", "diffusers", "matplotlib.pyplot")
# No test of the project waits longer for anything; a mutant that does is stuck.
WALL_SECONDS = 600


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from codes(each)


def put_in(path: str, tree: Any, mutant: Mutant, functions: list[FunctionType]) -> None:
    """Let the module's functions be the mutant's, those there are and those that another import will make."""
    with mutant.applied():
        mutated = compile(tree, os.path.abspath(path), "exec")
    found = {(code.co_firstlineno, code.co_name): code for code in codes(mutated)}
    for function in functions:
        code = found.get((function.__code__.co_firstlineno, function.__code__.co_name))
        if code is not None and len(code.co_freevars) == len(function.__code__.co_freevars):
            function.__code__ = code
    original = SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, name: str) -> CodeType | None:
        return mutated if os.path.abspath(self.path) == os.path.abspath(path) else original(self, name)

    SourceFileLoader.get_code = get_code


def forked(job: Callable[[], bool], cpu_seconds: float) -> str:
    """What became of `job` in a process of its own: it says whether a test failed."""
    pid = os.fork()
    if pid == 0:
        failed = True
        with contextlib.suppress(BaseException):
            resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds) + 1, int(cpu_seconds) + 2))
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            failed = job()
        os._exit(1 if failed else 0)
    until, pause = time.monotonic() + WALL_SECONDS, 0.005
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return SURVIVED if status == 0 else TIMEOUT if os.WIFSIGNALED(status) else KILLED
        if time.monotonic() > until:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            return TIMEOUT
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)


def pairs(items: list[pytest.Item]) -> list[tuple[pytest.Item, pytest.Item | None]]:
    """Each with the one that follows."""
    return list(zip(items, [*items[1:], None], strict=True))


class InTests:
    """A pytest plugin: in place of one run of the tests, the mutants of `paths`."""

    def __init__(self, paths: list[str], chosen: dict[str, list[int]], report: Report, given: Any) -> None:
        self.paths, self.chosen, self.report = paths, chosen, report
        self.budget, self.most_tests = given.budget, given.most_tests
        self.names = {os.path.abspath(path): path for path in paths}
        self.seen: set[tuple[str, int]] = set()
        self.lines: dict[str, set[tuple[str, int]]] = {}
        self.seconds: dict[str, float] = {}
        self.imported: dict[str, list[int]] = {}
        self._trace(True)

    def _trace(self, on: bool) -> None:
        def trace(frame: Any, event: str, argument: Any) -> Any:
            path = self.names.get(frame.f_code.co_filename)
            if path is None:
                return None

            def line(frame: Any, event: str, argument: Any) -> Any:
                # A call's line is that of the function's head, whose defaults were computed long before.
                self.seen.add((path, frame.f_lineno))
                return line

            return line

        threading.settrace(trace if on else None)
        sys.settrace(trace if on else None)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = []
        for item, following in pairs(self._sample(session.items)):
            self.seen.clear()
            began = time.process_time()
            reports = self._run(item, following)
            if all(each.passed for each in reports):
                items.append(item)
                self.lines[item.nodeid], self.seconds[item.nodeid] = set(self.seen), time.process_time() - began
            elif any(each.failed for each in reports):
                print(f"left out, for it fails without a mutant: {item.nodeid}", flush=True)
            self._trace(True)
        self._trace(False)
        print(f"{len(items)} tests, {sum(self.seconds.values()):.0f} s of processor time", flush=True)
        items.sort(key=lambda item: self.seconds[item.nodeid])
        gc.collect()
        made = [each for each in gc.get_objects() if type(each) is FunctionType]
        # What is frozen is left alone by the forks' collections, and so stays shared memory.
        gc.freeze()
        for path in self.paths:
            functions = [each for each in made if each.__code__.co_filename == os.path.abspath(path)]
            self._module(path, items, functions)
        return True

    def _sample(self, items: list[pytest.Item]) -> list[pytest.Item]:
        """At most so many tests of each file as was asked for, evenly spaced."""
        files: dict[Path, list[pytest.Item]] = {}
        for item in items:
            files.setdefault(item.path, []).append(item)
        return [item for own in files.values() for item in own[:: -(-len(own) // self.most_tests)]]

    def _run(self, item: pytest.Item, following: pytest.Item | None) -> list[pytest.TestReport]:
        return runtestprotocol(item, log=False, nextitem=following)

    def _grouped(self, tests: list[pytest.Item]) -> list[pytest.Item]:
        """Sorted file by file, so that what a file's tests share is made once, the one with the quickest first."""
        places: dict[Path, int] = {}
        for item in tests:
            places.setdefault(item.path, len(places))
        return sorted(tests, key=lambda item: places[item.path])

    def _module(self, path: str, items: list[pytest.Item], functions: list[FunctionType]) -> None:
        tree, mutants = mutants_of(path)
        for index in self.chosen[path]:
            mutant = mutants[index]
            lines = {(path, line) for line in mutant.lines}
            tests, planned = [], 0.0
            for item in items:
                if lines & self.lines[item.nodeid] and planned < self.budget:
                    tests.append(item)
                    planned += self.seconds[item.nodeid]
            if not tests:
                self.imported.setdefault(path, []).append(index)
                continue

            grouped = self._grouped(tests)

            def job(mutant: Mutant = mutant, tests: list[pytest.Item] = grouped) -> bool:
                put_in(path, tree, mutant, functions)
                return any(report.failed for each in pairs(tests) for report in self._run(*each))

            began = time.monotonic()
            self.report.add(mutant, index, forked(job, 4 * planned + 10), len(tests), time.monotonic() - began)


def by_import(path: str, index: int) -> bool:
    """Whether the mapped tests of a module fail with a mutant in it from the start."""
    tree, mutants = mutants_of(path)
    put_in(path, tree, mutants[index], [])
    return pytest.main([*TESTS[path], "-k", CHOSEN, "-x", "-q", "-p", "no:cacheprovider", "--capture=sys"]) != 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help="such as asag/guidance.py; without any, all")
    parser.add_argument("--every", type=int, default=1, help="try every so manieth mutant of each module")
    parser.add_argument("--offset", type=int, default=0, help="the first of these, counted from 0")
    parser.add_argument("--only", default="", help="numbers of the mutants of the one module that is named")
    parser.add_argument("--survivors", action="store_true", help="try those again that survived and aren't explained")
    parser.add_argument("--budget", type=float, default=20.0, help="processor seconds of tests per mutant, about")
    parser.add_argument("--most-tests", type=int, default=10**6, help="of each test file, for a first look")
    parser.add_argument("--no-imports", action="store_true", help="leave out what only runs while a module is imported")
    parser.add_argument("--results", type=Path, default=Path("build/mutation.jsonl"))
    parser.add_argument("--table", action="store_true", help="only print the table of the results that are there")
    return parser.parse_args()


def in_tests(plugin: InTests, left: Path) -> None:
    """Try the mutants of what runs in tests; leaves in a file the numbers of those of what doesn't."""
    tests = list(dict.fromkeys(test for path in plugin.paths for test in TESTS[path]))
    pytest.main([*tests, "-k", CHOSEN, "-q", "-p", "no:cacheprovider", "--capture=sys"], plugins=[plugin])
    left.write_text(json.dumps(plugin.imported))


def main() -> None:
    given = arguments()
    report = Report(given.results)
    if given.table:
        print(report.table())
        return
    paths = given.modules or list(TESTS)
    only = [int(each) for each in given.only.split(",") if each]
    chosen = {path: only or list(range(given.offset, len(mutants_of(path)[1]), given.every)) for path in paths}
    if given.survivors:
        left = report.survivors()
        chosen = {path: [at for at, each in enumerate(mutants_of(path)[1]) if each.key in left] for path in paths}
        paths = [path for path in paths if chosen[path]]
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    imported = Path(f"{given.results}.imported")
    imported.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        in_tests(InTests(paths, chosen, report, given), imported)
        os._exit(0)
    os.waitpid(pid, 0)
    for path, indices in json.loads(imported.read_text()).items():
        mutants = mutants_of(path)[1]
        for index in [] if given.no_imports else indices:
            began = time.monotonic()
            outcome = forked(lambda path=path, index=index: by_import(path, index), 300)
            report.add(mutants[index], index, outcome, 0, time.monotonic() - began)
    print(report.table())


if __name__ == "__main__":
    main()
