"""The folder of the metrics' weights: what is missing is named before anything is made. Nothing is ever downloaded."""

from __future__ import annotations

from pathlib import Path

from asag.lab.evaluation.plan import EvaluationError


def need(weights: Path | None, file: str, what: str) -> None:
    """Raise EvaluationError, naming the file and `what` it is, where the folder lacks it or isn't given."""
    if weights is None:
        raise EvaluationError(f"weights: not given; allowed: a folder with {file} ({what})")
    if not (weights / file).is_file():
        raise EvaluationError(
            f"weights: {weights / file} is missing; allowed: a folder with this file ({what}); nothing is downloaded"
        )
