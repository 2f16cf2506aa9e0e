"""`python -m asag bench`: what ASAG costs: its operator to SDPA, a guided step to CFG, a WebUI's pictures."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from asag.lab.bench import hosts, operator, report, step
from asag.lab.bench.measure import CLOCKS, MIB, Meter, machine

BENCHES = ("operator", "step", "hosts")


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m asag bench", description=__doc__)
    parser.add_argument("bench", nargs="?", choices=BENCHES, help="one of them; else all")
    parser.add_argument("--json", type=Path, help="write a line a measurement here, and the table beside it (.md)")
    parser.add_argument("--pairs", type=int, default=7, help="rounds of each case")
    parser.add_argument("--seconds", type=float, default=180.0, help="after so many, three rounds of a case are enough")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the cases whose name has this in it")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and two rounds: a test, not a measurement")
    threads = int(os.environ.get("OMP_NUM_THREADS", "2"))
    parser.add_argument("--threads", type=int, default=threads, help="default: OMP_NUM_THREADS, else 2")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu: for a busy machine and one thread")
    parser.add_argument("--device", default="cpu", help="cuda: real sizes, half precision")
    parser.add_argument("--dense-gib", type=float, default=3.0, help="dense forms that need more memory are skipped")
    parser.add_argument("--chart", nargs=2, type=Path, metavar=("JSON", "PNG"), help="draw what was written; no bench")
    args = parser.parse_args(argv)
    if args.pairs < 2:
        parser.error(f"--pairs: {args.pairs}; allowed: at least 2")
    if args.threads < 1:
        parser.error(f"--threads: {args.threads}; allowed: at least 1")
    if not any(args.only in name for name in case_names(args.bench, args.quick)):
        parser.error(f"--only: {args.only!r}; allowed: text that is in the name of a case")
    if args.clock == "cpu" and args.device != "cpu":
        parser.error(f"--clock: cpu with --device {args.device}; allowed: wall")
    return args


def case_names(bench: str | None, quick: bool) -> list[str]:
    names = {
        "operator": [shape.case for shape in operator.shapes(quick)],
        "step": [case.title for case in step.CASES],
        "hosts": [hosts.case_name(quick)],
    }
    return names[bench] if bench else [name for each in names.values() for name in each]


def measurements(args: argparse.Namespace, meter: Meter) -> dict[str, Callable[[], Iterator[dict[str, Any]]]]:
    common: dict[str, Any] = {"quick": args.quick, "only": args.only}
    dense_bytes = int(args.dense_gib * 1024 * MIB)
    all_of_them = {
        "operator": partial(operator.measure, meter, dense_bytes=dense_bytes, **common),
        "step": partial(step.measure, meter, **common),
        "hosts": partial(hosts.measure, meter, **common),
    }
    return {args.bench: all_of_them[args.bench]} if args.bench else all_of_them


def main(argv: Sequence[str] | None = None) -> int:
    args = read_arguments(argv)
    if args.chart:
        try:
            report.chart(report.read(args.chart[0]), args.chart[1])
        except (OSError, ValueError) as error:
            print(f"--chart: {error}", file=sys.stderr)
            return 2
        print(f"Written: {args.chart[1]}")
        return 0
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    meter = Meter(device, 2 if args.quick else args.pairs, math.inf if args.quick else args.seconds, args.clock)
    facts = machine(device, args.threads, args.clock)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text("")
    records, refused = [], False
    for measure in measurements(args, meter).values():
        try:
            for found in measure():
                records.append(found)
                print(json.dumps(found), file=sys.stderr)
                if args.json:  # line by line: what was measured stays when a long run is broken off
                    with args.json.open("a") as file:
                        file.write(json.dumps(found) + "\n")
        except hosts.HostError as error:
            print(error, file=sys.stderr)
            refused = True
    command = "python -m asag bench " + " ".join(argv if argv is not None else sys.argv[2:])
    page = "\n".join(
        [*(f"{name}: {value}" for name, value in facts.items()), f"command: {command}", "", report.table(records)]
    )
    print(page)
    if args.json:
        args.json.with_suffix(".md").write_text(f"```\n{page}\n```\n")
        print(f"\nWritten: {args.json} and {args.json.with_suffix('.md')}")
    return 2 if refused and args.bench else 0


if __name__ == "__main__":
    raise SystemExit(main())
