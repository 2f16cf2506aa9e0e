"""What is to be made: prompts times seeds times methods, read from what the user gave."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asag.lab.arguments import DTYPES
from asag.operators import METHODS
from asag.settings import AsagSettings, SettingsError, current_names, options

PROMPT_FIELDS = ("caption", "prompt")
# Every image is a pass of its own here, nothing shows figures, and a method that is switched off is `cfg`.
_NOT_OF_A_METHOD = {"enabled", "figures", "hires", "hires_scale", "hires_blocks"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class EvaluationError(ValueError):
    """An option or a file is wrong. The message names it, the value and what is allowed."""


@dataclass(frozen=True)
class Method:
    """A way to guide. `name` is also its folder's; `settings` are asag_guidance's, None is CFG alone."""

    name: str
    settings: Mapping[str, Any] | None


@dataclass(frozen=True)
class Sampling:
    """What all methods have in common. None leaves it to the pipeline; `size` is (width, height) in pixels."""

    steps: int
    guidance_scale: float | None = None
    size: tuple[int, int] | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise EvaluationError(f"steps: {self.steps}; allowed: at least 1")
        if self.dtype not in DTYPES:
            raise EvaluationError(f"dtype: {self.dtype!r}; allowed: {', '.join(DTYPES)}")


@dataclass(frozen=True)
class Item:
    """One prompt with one seed. `index` is the prompt's number in its file, from 0."""

    index: int
    prompt: str
    seed: int

    @property
    def noise_seed(self) -> int:
        """The seed of this image's generator, 63 bits: of its prompt and seed alone, and the same for every method.

        With the bare seed all prompts would start from the same noise.
        """
        digest = hashlib.sha256(f"{self.seed}\n{self.prompt}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1


def items(prompts: Sequence[str], seeds: Sequence[int]) -> list[Item]:
    """Every prompt with every seed, prompt by prompt."""
    return [Item(index, prompt, seed) for index, prompt in enumerate(prompts) for seed in seeds]


def parts(of: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Consecutive parts of `size` items, the last one shorter where it doesn't fit."""
    return (of[start : start + size] for start in range(0, len(of), size))


def read_prompts(path: Path, limit: int | None = None) -> list[str]:
    """The prompts of a file, at most `limit`: .jsonl and .csv by their field caption or prompt, else one a line.

    Blank lines are no prompts; the empty prompt can be given in a .jsonl or .csv.

    Raises:
        EvaluationError: naming the file, and the line that has no prompt.
    """
    if limit is not None and limit < 1:
        raise EvaluationError(f"limit: {limit}; allowed: at least 1")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            prompts = list(_prompts(path, file))
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"prompts: {path}: {error}; allowed: a file of text in UTF-8") from error
    if not prompts:
        raise EvaluationError(f"prompts: {path} has none; allowed: at least one")
    return prompts[:limit]


def _prompts(path: Path, file: Any) -> Iterator[str]:
    if path.suffix == ".csv":
        for row in csv.DictReader(file):
            yield _field(path, row, "row")
    elif path.suffix == ".jsonl":
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise EvaluationError(f"prompts: {path} line {number}: {error}; allowed: a JSON object") from error
                yield _field(path, row, f"line {number}")
    else:
        yield from (line.strip() for line in file if line.strip())


def _field(path: Path, row: Any, where: str) -> str:
    found = [row[name] for name in PROMPT_FIELDS if name in row] if isinstance(row, Mapping) else []
    if not found or not isinstance(found[0], str):
        raise EvaluationError(f"prompts: {path} {where}: {row}; allowed: text as {' or '.join(PROMPT_FIELDS)}")
    return found[0].strip()


def read_seeds(text: str) -> list[int]:
    """Seeds from "0", "0,1,2" or "0-29999"; raises EvaluationError for anything else, or a seed given twice."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match:
            raise EvaluationError(f"seeds: {text!r}; allowed: whole numbers from 0 on, such as 0,1,2 or 0-9")
        first, last = int(match[1]), int(match[2] or match[1])
        seeds += range(first, last + 1)
    if not seeds or len(set(seeds)) != len(seeds):
        raise EvaluationError(f"seeds: {text!r}; allowed: each once, ranges from the lower to the higher")
    return seeds


def read_methods(text: str) -> list[Method]:
    """Methods from "cfg,pag:3,asag:1.5" (cfg, or a method and its scale) or from JSON: name to settings.

    In JSON `{"cfg": {}, "late": {"scale": 1.5, "blocks": "late"}}` no settings at all mean CFG alone.

    Raises:
        EvaluationError: naming the method that is unknown, given twice or badly named.
        SettingsError: naming the settings that are wrong.
    """
    given = (
        _methods_of_json(text) if text.lstrip().startswith("{") else [_short_method(part) for part in text.split(",")]
    )
    names = [method.name for method in given]
    for name in names:
        # The name is a folder's; on some systems those that differ in case alone are the same.
        if not _NAME.fullmatch(name) or [each.lower() for each in names].count(name.lower()) > 1:
            raise EvaluationError(f"methods: {name!r}; allowed: names of letters, digits and . _ - that differ")
    for method in given:
        _check_settings(method)
    return given


def _methods_of_json(text: str) -> list[Method]:
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise EvaluationError(f"methods: {text!r}: {error}; allowed: a JSON object of names and settings") from error
    for name, settings in given.items():
        if not isinstance(settings, dict):
            raise EvaluationError(f"methods: {name}: {settings!r}; allowed: an object of settings")
    return [Method(name, settings or None) for name, settings in given.items()]


def _short_method(text: str) -> Method:
    name, colon, scale = text.strip().partition(":")
    if text.strip() == "cfg":
        return Method("cfg", None)
    if name not in METHODS:
        raise EvaluationError(f"methods: {text.strip()!r}; allowed: cfg, or one of {', '.join(METHODS)} and :SCALE")
    return Method(f"{name}-{scale}" if colon else name, {"method": name} | ({"scale": scale} if colon else {}))


def _check_settings(method: Method) -> None:
    if method.settings is None:
        return
    allowed = [name for name in options() if name not in _NOT_OF_A_METHOD]
    unknown = [name for name in current_names(method.settings) if name not in allowed]
    if unknown:
        raise SettingsError([f"{name}: not one of a method; allowed: {', '.join(allowed)}" for name in unknown])
    AsagSettings.from_mapping(method.settings)
