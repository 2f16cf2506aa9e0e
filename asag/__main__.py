"""`python -m asag COMMAND`: the demo, the playground, the benchmarks, and the training of the embedded model."""

from __future__ import annotations

import sys

from asag.lab.commands import run

COMMANDS = {
    "demo": ("asag.lab.demo", "draw the same pictures with CFG, PAG, SEG and ASAG"),
    "playground": ("asag.lab.playground", "try it in a page of its own"),
    "rows": ("asag.lab.rows", "draw what each option does, for the documentation"),
    "train": ("asag.lab.embedded.train", "train the embedded model from a seed"),
    "quality": ("asag.lab.embedded.quality", "measure the embedded model"),
    "evaluate": ("asag.lab.evaluation.cli", "make a local pipeline's pictures by each method and measure them"),
    "bench": ("asag.lab.bench.cli", "measure what ASAG costs"),
}


def main(argv: list[str]) -> int:
    return run("asag", COMMANDS, argv)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
