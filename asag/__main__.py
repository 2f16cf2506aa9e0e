"""`python -m asag COMMAND`: the demo, the playground, the benchmarks, and the training of the embedded model."""

from __future__ import annotations

import sys

from asag.lab import arguments
from asag.lab.commands import Command, run

_DEMO = "pip install -e .[demo] brings it"
COMMANDS = {
    "demo": Command(
        "asag.lab.demo",
        arguments.demo,
        "draw the same pictures with CFG, PAG, SEG and ASAG",
        _DEMO,
    ),
    "playground": Command(
        "asag.lab.playground",
        arguments.playground,
        "try it in a page of its own",
        "`make playground` installs it",
    ),
    "rows": Command(
        "asag.lab.rows",
        arguments.rows,
        "draw what each option does, for the documentation",
        _DEMO,
    ),
    "train": Command(
        "asag.lab.embedded.train",
        arguments.train,
        "train the embedded model from a seed",
        _DEMO,
    ),
    "quality": Command(
        "asag.lab.embedded.quality",
        arguments.quality,
        "measure the embedded model",
        _DEMO,
    ),
    "evaluate": Command(
        "asag.lab.evaluation.cli",
        arguments.evaluate,
        "make a local pipeline's pictures by each method and measure them",
        "pip install -e .[evaluate] brings it",
    ),
    "bench": Command(
        "asag.lab.bench.cli",
        arguments.bench,
        "measure what ASAG costs",
        _DEMO,
    ),
}


def main(argv: list[str]) -> int:
    return run("asag", COMMANDS, argv)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
