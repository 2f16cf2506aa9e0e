"""`python -m asag bench device`: runs the parts one after another and writes what they found after each.

Loads nothing of torch: what fails there, fails in a part.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from threading import Event
from typing import Any

from asag.lab.bench.device.page import page
from asag.lab.bench.device.run import Outcome, Part, run_part

ROOT = Path(__file__).parents[4]
RESULTS = ROOT / "bench" / "results"
CARD_SECONDS = 60
# Names of modules of this package; seconds at most. With the card's they are 25 minutes.
PARTS = (
    ("accuracy", "The operator against float64", 330),
    ("steps", "A guided step against one with CFG alone", 330),
    ("branch", "Shared work against a whole extra pass", 150),
    ("times", "The operator against attention", 210),
    ("doubles", "Tests of adapters and models on the device", 240),
    ("kernels", "Kernels by torch.profiler", 90),
    ("counters", "Counters of NVIDIA's profilers", 90),
)


def part_names() -> list[str]:
    return [name for name, _, _ in PARTS]


def part_of(name: str, title: str, seconds: float, device: str, quick: bool) -> Part:
    size = "quick" if quick else "full"
    command = (sys.executable, "-m", "asag.lab.bench.device.part", name, device, size)
    return Part(name, title, command, seconds)


def slug(text: str) -> str:
    """ "NVIDIA GeForce RTX 4090" as "nvidia-geforce-rtx-4090"."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def write(path: Path, facts: dict[str, Any], command: str, outcomes: Sequence[Outcome]) -> None:
    """Lines of JSON: the machine, then for each part a line of how it went and those that it wrote. The page beside."""
    lines: list[dict[str, Any]] = [{"part": "card"} | facts]
    for outcome in outcomes:
        name = outcome.part.name
        lines.append({"part": name, "problem": outcome.problem, "took_seconds": round(outcome.seconds, 1)})
        lines += [{"part": name} | line for line in outcome.lines]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path.with_suffix(".md").write_text(page(facts, command, outcomes))


@contextmanager
def stoppable() -> Iterator[Event]:
    """While open, SIGTERM ends the part that runs, as Ctrl-C does, and sets the event."""
    stopped = Event()

    def stop(number: int, frame: object) -> None:
        stopped.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, before)


def main(args: argparse.Namespace, command: str) -> int:
    """0 where every part went well, 1 where one failed, 2 where there is no such device."""
    ends = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as made, stoppable() as stopped:
        folder = Path(made)
        card = run_part(part_of("card", "The card", CARD_SECONDS, args.device, args.quick), CARD_SECONDS, folder)
        if card.problem or not card.lines:
            print(f"bench device: {card.problem or 'the card is unknown'}", file=sys.stderr)
            return 2
        facts = card.lines[0]
        path = args.json or RESULTS / f"{date.today().isoformat()}-{slug(str(facts['device']))}.jsonl"
        outcomes: list[Outcome] = []
        for name, title, seconds in PARTS:
            if args.only not in name:
                continue
            print(f"{title}: at most {seconds} s", flush=True)
            outcomes.append(
                run_part(part_of(name, title, seconds, args.device, args.quick), ends - time.monotonic(), folder)
            )
            print(f"  {outcomes[-1].problem or 'went well'}, {outcomes[-1].seconds:.0f} s", flush=True)
            write(path, facts, command, outcomes)
            if stopped.is_set():
                break
    print(f"\nWritten: {path} and {path.with_suffix('.md')}")
    return 1 if any(outcome.problem for outcome in outcomes) else 0
