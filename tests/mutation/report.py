"""What became of the mutants: a line of JSON for each, and a table. survivors.md explains those that may survive."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.mutation.mutants import Mutant

SURVIVORS = Path(__file__).with_name("survivors.md")
KILLED, TIMEOUT, SURVIVED = "killed", "timeout", "survived"
HEAD = "| module | mutants | killed | | explained | not explained |"


class Report:
    """What became of each mutant, a line of JSON for each, and a table."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.explained = SURVIVORS.read_text() if SURVIVORS.exists() else ""
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, mutant: Mutant, index: int, outcome: str, tests: int, seconds: float) -> None:
        line = {"module": mutant.path, "index": index, "outcome": outcome, "line": mutant.lines.start}
        line |= {"mutant": mutant.key, "tests": tests, "seconds": round(seconds, 2)}
        with self.path.open("a") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if outcome == SURVIVED:
            print(f"{outcome} {index} line {mutant.lines.start} {mutant.key} ({tests} tests)", flush=True)

    def last(self) -> dict[tuple[str, str], dict[str, Any]]:
        """By module and mutant, what became of it last."""
        lines = map(json.loads, self.path.read_text().splitlines())
        return {(each["module"], each["mutant"]): each for each in lines}

    def survivors(self) -> set[str]:
        """The mutants that survived and aren't explained."""
        left = {mutant for (_, mutant), each in self.last().items() if each["outcome"] == SURVIVED}
        return {mutant for mutant in left if mutant not in self.explained}

    def table(self) -> str:
        """Per module: mutants, killed, explained, not explained. A mutant's last outcome counts."""
        last = self.last()
        rows = []
        for module in [*sorted({module for module, _ in last}), "all"]:
            own = [each for (of, _), each in last.items() if module in (of, "all")]
            killed = sum(each["outcome"] in (KILLED, TIMEOUT) for each in own)
            left = [each["mutant"] for each in own if each["outcome"] not in (KILLED, TIMEOUT)]
            explained = sum(each in self.explained for each in left)
            share = 100 * killed / max(len(own), 1)
            rows.append(f"| {module} | {len(own)} | {killed} | {share:.0f} % | {explained} | {len(left) - explained} |")
        return "\n".join([HEAD, "| --- " * 6 + "|", *rows])
