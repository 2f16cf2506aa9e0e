"""A folder of images, written whole or not at all, with a record of what they were made from."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from asag.lab.evaluation.plan import EvaluationError, Item, Method, Sampling


class Store:
    """images/METHOD/PROMPT-SEED.png below a folder, and plan.json. Several processes and machines may write to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, method: Method, item: Item) -> Path:
        return self.folder / "images" / method.name / f"{item.index:06d}-{item.seed}.png"

    def missing(self, method: Method, of: Sequence[Item]) -> list[Item]:
        """Those of the items whose image isn't there."""
        return [item for item in of if not self.path(method, item).exists()]

    def write(self, method: Method, item: Item, image: Image.Image) -> None:
        """Store an image as a PNG: under its name it is never seen half written, even if the machine stops."""
        path = self.path(method, item)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.stem}.{socket.gethostname()}.{os.getpid()}.tmp")
        _write_whole(path, unfinished, lambda file: image.save(file, format="png"))

    def tidy(self) -> None:
        """Remove what lost workers left unfinished; only once no worker is writing."""
        for left in self.folder.glob("images/*/.*.tmp"):
            left.unlink(missing_ok=True)

    def claim(self, pipeline: Path, sampling: Sampling, methods: Sequence[Method], prompts: Sequence[str]) -> None:
        """Write down what the images here are made from, or check it against what is written.

        More methods, more prompts after those known, and fewer are fine.

        Raises:
            EvaluationError: naming the first thing that differs from the images that are there.
        """
        wanted: dict[str, Any] = {"pipeline": str(pipeline), **_plain(asdict(sampling))}
        record = self.folder / "plan.json"
        known = json.loads(record.read_text()) if record.exists() else {**wanted, "methods": {}, "prompts": []}
        for name, value in wanted.items():
            self._compare(name, known[name], value)
        for method in methods:
            settings = _plain(method.settings)
            self._compare(f"methods: {method.name}", known["methods"].setdefault(method.name, settings), settings)
        for number, (old, new) in enumerate(zip(known["prompts"], prompts, strict=False)):
            self._compare(f"prompts: number {number}", old, new)
        known["prompts"] += prompts[len(known["prompts"]) :]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write_text("plan.json", json.dumps(known, indent=1) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Replace a file of the folder by one with this text."""
        _write_whole(self.folder / name, self.folder / f".{name}.tmp", lambda file: file.write(text.encode()))

    def _compare(self, name: str, known: Any, wanted: Any) -> None:
        if known != wanted:
            raise EvaluationError(
                f"{name}: {wanted!r}; allowed: {known!r}, as for the images in {self.folder}, or another folder"
            )


def _plain(value: Any) -> Any:
    """The value as JSON gives it back."""
    return json.loads(json.dumps(value))


def _write_whole(path: Path, unfinished: Path, write: Any) -> None:
    with unfinished.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())  # else a power cut may leave the name without the bytes
    unfinished.replace(path)
