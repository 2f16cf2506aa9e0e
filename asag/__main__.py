"""`python -m asag COMMAND`: the demo, the playground, the benchmarks, and the training of the embedded model."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "demo": ("asag.lab.demo", "draw the same pictures with CFG, PAG, SEG and ASAG"),
    "playground": ("asag.lab.playground", "try it in a page of its own"),
    "rows": ("asag.lab.rows", "draw what each option does, for the documentation"),
    "train": ("asag.lab.train", "train the embedded model from a seed"),
    "quality": ("asag.lab.quality", "measure the embedded model"),
    "evaluate": ("asag.lab.evaluate", "measure what guidance does to pictures, as the papers do"),
    "report": ("asag.lab.evidence.report", "draw the report from what was measured"),
    "bench": ("asag.lab.bench", "measure what ASAG costs"),
}


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in COMMANDS:
        listed = "\n".join(f"  {name:10} {text}" for name, (_, text) in COMMANDS.items())
        asked_for_help = bool(argv) and argv[0] in ("-h", "--help")
        print(f"usage: python -m asag COMMAND [options]\n\n{listed}", file=sys.stdout if asked_for_help else sys.stderr)
        return 0 if asked_for_help else 2
    module, _ = COMMANDS[argv[0]]
    return importlib.import_module(module).main(argv[1:])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
