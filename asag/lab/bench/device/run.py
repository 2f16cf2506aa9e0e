"""The parts of a run: each a process with a time limit of its own, so that one that fails or hangs stops no other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from asag.lab.bench.device.lines import Line

# Of what a part printed, so much goes to the page where it failed.
SHOWN_LINES = 25
# Less isn't worth starting for: torch alone takes seconds to load.
LEAST_SECONDS = 5.0


@dataclass(frozen=True)
class Part:
    """`command` is run with the name of the file for its lines of JSON as the last argument, for at most `seconds`."""

    name: str
    title: str
    command: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What came of a part. `problem` is one line, and empty where there was none; `lines` are those it wrote, also
    before it failed; `output` is the end of what it printed."""

    part: Part
    problem: str = ""
    seconds: float = 0.0
    lines: list[Line] = field(default_factory=list)
    output: str = ""


def run_part(part: Part, left: float, folder: Path) -> Outcome:
    """Run a part for at most `left` seconds. What it starts ends with it."""
    limit = min(part.seconds, left)
    if limit < min(part.seconds, LEAST_SECONDS):
        return Outcome(part, "not run: the time was up")
    lines, printed = folder / f"{part.name}.jsonl", folder / f"{part.name}.log"
    started = time.monotonic()
    with printed.open("wb") as output:
        process = subprocess.Popen(
            [*part.command, str(lines)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            ended = ended_by(process.wait(limit))
        except subprocess.TimeoutExpired:
            ended = f"stopped after {limit:.0f} s"
        except KeyboardInterrupt:
            ended = "interrupted"
        finally:
            end(process)
    text = printed.read_text(errors="replace").rstrip()
    last = text.splitlines()[-1].strip() if text else ""
    problem = f"{ended}: {last}" if ended and last else ended
    shown = "\n".join(text.splitlines()[-SHOWN_LINES:])
    return Outcome(part, problem, time.monotonic() - started, read_lines(lines), shown)


def ended_by(status: int) -> str:
    """Empty for a process that went well."""
    if status < 0:
        return f"ended by signal {-status}"
    return f"ended with {status}" if status else ""


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, and on Linux and macOS what it started too."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def read_lines(path: Path) -> list[Line]:
    """The lines of a part; the last one may be cut off where the part was stopped."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
