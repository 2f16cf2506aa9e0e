"""`python -m asag bench`: what ASAG costs. Each bench is loaded only when it is run: "device" has to start without
packages that its parts may lack."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from asag.lab import arguments


def case_names(bench: str | None, quick: bool) -> list[str]:
    """The names that --only may choose from."""
    if bench == arguments.DEVICE_BENCH:
        from asag.lab.bench.device.cli import part_names

        return part_names()
    if bench == arguments.FAKE_BENCH:
        from asag.lab.bench import cuda

        return cuda.case_names(quick)
    if bench == arguments.COMPILE_BENCH:
        from asag.lab.bench import compiled

        return compiled.case_names(quick)
    from asag.lab.bench import paired

    return paired.case_names(bench, quick)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments.bench(argv)
    if not any(args.only in name for name in case_names(args.bench, args.quick)):
        args.error(f"--only: {args.only!r}; allowed: text that is in the name of a case")
    command = "python -m asag bench " + " ".join(argv if argv is not None else sys.argv[2:])
    if args.bench == arguments.DEVICE_BENCH:
        from asag.lab.bench.device import cli

        return cli.main(args, command)
    if args.bench == arguments.FAKE_BENCH:
        from asag.lab.bench import cuda

        return cuda.main(args)
    if args.bench == arguments.COMPILE_BENCH:
        from asag.lab.bench import compiled

        return compiled.main(args)
    from asag.lab.bench import paired

    return paired.main(args, command)
