"""What options of the commands take: each is a `type` of argparse, whose error names the value and what is allowed.

Loads nothing heavy, as asag.lab.arguments. The files' names are those that `python -m asag train --data` exports.
"""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

UNET, MMDIT = "unet/config.json", "transformer/config.json"
SCHEDULER, WORDS, JUDGE = "scheduler/scheduler_config.json", "words.json", "judge.json"


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Whole numbers from `least` on, up to `most` if given."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ArgumentTypeError(f"{text!r}; allowed: a whole number") from None
        if value < least or (most is not None and value > most):
            raise ArgumentTypeError(f"{value}; allowed: at least {least}{'' if most is None else f', at most {most}'}")
        return value

    return read


def number(least: float) -> Callable[[str], float]:
    """Numbers from `least` on; neither nan nor inf."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ArgumentTypeError(f"{text!r}; allowed: a number") from None
        if not least <= value < math.inf:
            raise ArgumentTypeError(f"{text}; allowed: at least {least:g}")
        return value

    return read


def above_zero(text: str) -> float:
    """Numbers above 0; neither nan nor inf."""
    value = number(0)(text)
    if value == 0:
        raise ArgumentTypeError(f"{text}; allowed: above 0")
    return value


def existing(text: str) -> Path:
    """A file or folder that is there."""
    if not Path(text).exists():
        raise ArgumentTypeError(f"{text} isn't there; allowed: a path that is")
    return Path(text)


def out_folder(text: str) -> Path:
    """A folder to write to, which need not be there yet."""
    if any(path.is_file() for path in (Path(text), *Path(text).parents)):
        raise ArgumentTypeError(f"{text} is a file, or in one; allowed: a folder")
    return Path(text)


def out_file(text: str) -> Path:
    """A file to write, in a folder which need not be there yet."""
    if Path(text).is_dir():
        raise ArgumentTypeError(f"{text} is a folder; allowed: a file's name")
    out_folder(str(Path(text).parent))
    return Path(text)


def pipeline(text: str) -> Path:
    """The folder of a UNet or of an MMDiT that `asag train` exported."""
    kind = MMDIT if (Path(text) / MMDIT).exists() else UNET
    return _folder(text, (kind, SCHEDULER), "a model's folder")


def of_renderings(text: str) -> Path:
    """The same, of a model of renderings, with its words."""
    return _folder(str(pipeline(text)), (WORDS,), "the folder of a model of renderings")


def unet_of_renderings(text: str) -> Path:
    """The folder of a UNet of renderings."""
    return _folder(text, (UNET, SCHEDULER, WORDS), "the folder of a UNet of renderings")


def judge(text: str) -> Path:
    """The folder of a classifier of renderings."""
    return _folder(text, (JUDGE,), "the folder of a classifier of renderings")


def _folder(text: str, needed: tuple[str, ...], allowed: str) -> Path:
    lacking = [name for name in needed if not (Path(text) / name).exists()]
    if lacking:
        raise ArgumentTypeError(f"{text} has no {', '.join(lacking)}; allowed: {allowed}, as `asag train` exports it")
    return Path(text)
