"""`python -m research COMMAND`: the experiments of three papers on the small models that come with ASAG."""

from __future__ import annotations

import sys

from asag.lab.commands import Command, run
from research import arguments

_NEEDS = "pip install -e .[evidence] brings it"
COMMANDS = {
    "evaluate": Command(
        "research.asag.evaluate",
        arguments.evaluate,
        "measure what guidance does to pictures, as ASAG's paper does",
        _NEEDS,
    ),
    "along": Command("research.asag.along", arguments.along, "measure the attention plans along sampling", _NEEDS),
    "directions": Command("research.asag.directions", arguments.directions, "measure where each method pushes", _NEEDS),
    "units": Command("research.asag.units", arguments.units, "measure pushes beside CFG's own, for the units", _NEEDS),
    "single": Command(
        "research.asag.unit_single", arguments.single, "sample one scale of each unit everywhere", _NEEDS
    ),
    "best": Command("research.asag.unit_best", arguments.best, "compare the best scales in each unit", _NEEDS),
    "fingerprint": Command(
        "research.asag.cell.fingerprint",
        arguments.fingerprint,
        "look for the regime of the paper on a model of renderings",
        _NEEDS,
    ),
    "cell": Command(
        "research.asag.cell.run",
        arguments.cell,
        "measure the decisive cell: all methods at equal push where the fingerprint says",
        _NEEDS,
    ),
    "report": Command(
        "research.asag.report",
        arguments.report,
        "write the pages and figures of research/asag from its lines",
        _NEEDS,
    ),
    "choose": Command(
        "research.renderings.choose",
        arguments.choose,
        "search the demo's settings of each method",
        _NEEDS,
    ),
    "pairs": Command("research.renderings.pairs", arguments.pairs, "draw pairs for a blind judgement", _NEEDS),
    "control": Command(
        "research.renderings.control",
        arguments.control,
        "measure guidance beside a ControlNet or an IP-Adapter of renderings",
        _NEEDS,
    ),
    "precision": Command(
        "research.precision.measure", arguments.precision, "measure what half precision does to δ, and its page", _NEEDS
    ),
    "guidance_breaks": Command(
        "research.guidance_breaks.report",
        arguments.guidance_breaks,
        "the experiments on adaptive guidance, and their page",
        _NEEDS,
    ),
    "drifting": Command(
        "research.drifting.train",
        arguments.drifting,
        "the experiments on Sinkhorn drifting, and their page",
        _NEEDS,
    ),
}


def main(argv: list[str]) -> int:
    return run("research", COMMANDS, argv)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
