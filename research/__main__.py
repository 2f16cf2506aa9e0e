"""`python -m research COMMAND`: the experiments of three papers on the small models that come with ASAG."""

from __future__ import annotations

import sys

from asag.lab.commands import run

COMMANDS = {
    "evaluate": ("research.asag.evaluate", "measure what guidance does to pictures, as ASAG's paper does"),
    "along": ("research.asag.along", "measure the attention plans along sampling"),
    "directions": ("research.asag.directions", "measure where each method pushes"),
    "report": ("research.asag.report", "write the page and figures of research/asag from its lines"),
    "guidance_breaks": ("research.guidance_breaks.report", "the experiments on adaptive guidance, and their page"),
    "drifting": ("research.drifting.train", "the experiments on Sinkhorn drifting, and their page"),
}


def main(argv: list[str]) -> int:
    return run("research", COMMANDS, argv)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
