"""`python -m asag bench operator`, `step` and `hosts`: paired measurements on this machine."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from asag.lab.bench import hosts, operator, report, step
from asag.lab.bench.measure import MIB, Meter, machine


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
    all_of_them: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "operator": partial(operator.measure, meter, dense_bytes=dense_bytes, **common),
        "step": partial(step.measure, meter, **common),
        "hosts": partial(hosts.measure, meter, **common),
    }
    return {args.bench: all_of_them[args.bench]} if args.bench else all_of_them


def main(args: argparse.Namespace, command: str) -> int:
    """Print the measurements, and with --json write a line each and the table beside them."""
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
    page = "\n".join(
        [*(f"{name}: {value}" for name, value in facts.items()), f"command: {command}", "", report.table(records)]
    )
    print(page)
    if args.json:
        args.json.with_suffix(".md").write_text(f"```\n{page}\n```\n")
        print(f"\nWritten: {args.json} and {args.json.with_suffix('.md')}")
    return 2 if refused and args.bench else 0
