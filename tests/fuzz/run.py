"""atheris on the parsers: python -m tests.fuzz.run FOLDER -max_total_time=60, and libFuzzer's other options.

FOLDER gets the inputs of the corpus, and new ones that reach what no other does. `--keep FOLDER` alone makes the inputs
in it the corpus.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["asag"]):
    from tests.fuzz import parsers


def keep(folder: Path) -> None:
    found = sorted({path.read_bytes() for path in folder.iterdir()})
    lines = [json.dumps(each.decode("latin-1")) for each in found]
    parsers.CORPUS.write_text("\n".join(lines) + "\n", encoding="utf-8")


def fuzz(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, each in enumerate(parsers.corpus()):
        (folder / f"kept-{number}").write_bytes(each)
    atheris.Setup(sys.argv, parsers.one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1] == "--keep":
        keep(Path(sys.argv[2]))
    else:
        fuzz(Path(sys.argv[1]))
