"""`python -m asag evaluate`: experiments on the embedded models or, with --pipeline, a local pipeline's pictures."""

from __future__ import annotations

import importlib


def main(argv: list[str]) -> int:
    """Both have options of their own; what stands with --pipeline is listed by `evaluate --pipeline --help`."""
    local = any(each.partition("=")[0] == "--pipeline" for each in argv)
    module = "asag.lab.evaluation.cli" if local else "asag.lab.evidence.evaluate"
    return importlib.import_module(module).main(argv)
