"""What a checkpoint file holds, from its header alone: what is chosen, or comes later in a run, isn't loaded yet.

A safetensors file begins with eight bytes, the length of its header, and the header, JSON with name, type and shape of
each tensor (https://github.com/huggingface/safetensors, Format). GGUF files are read by the package gguf, which Forge
and Neo bring with them: no other WebUI loads such files.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeGuard

from asag.models.tensor_names import Contents, Shapes, recognize

# The format's own limit.
LONGEST_HEADER = 100_000_000
# Of a tensor; none that is known is as long.
LONGEST_NAME = 1000
SAFETENSORS = (".safetensors", ".sft")
# Forge's packages_3rdparty, Neo's own.
GGUF_PACKAGES = ("gguf", "modules_forge.packages.gguf")


class Unreadable(Exception):
    """What a file holds can't be told without loading it; the message says why."""


def contents(path: Path) -> Contents:
    """What a checkpoint file holds; raises Unreadable. A file that hasn't changed since is read once.

    A configuration beside the file (AUTOMATIC1111's NAME.yaml) may give the model other numbers of heads than its kind
    has: they aren't told then.
    """
    try:
        found = path.stat()
        is_configured = path.with_suffix(".yaml").exists()
    except OSError as error:
        raise Unreadable(f"its file can't be read: {error.strerror}") from error
    read = _contents(path, found.st_mtime_ns, found.st_size)
    return replace(read, heads={}) if is_configured else read


@lru_cache(maxsize=8)
def _contents(path: Path, changed: int, size: int) -> Contents:
    found = recognize(shapes(path))
    if found is None:
        raise Unreadable("ASAG doesn't know the model in its file")
    return found


def shapes(path: Path) -> Shapes:
    """Name and shape of each tensor in a file, in the order of PyTorch's dimensions; raises Unreadable."""
    kind = path.suffix.lower()
    if kind in SAFETENSORS:
        return _safetensors_shapes(path)
    if kind == ".gguf":
        return _gguf_shapes(path)
    raise Unreadable(f"ASAG can't read the blocks of a {kind or 'nameless'} file before it is loaded")


def _safetensors_shapes(path: Path) -> Shapes:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: Any = json.loads(file.read(length)) if length <= LONGEST_HEADER else None
    except OSError as error:
        raise Unreadable(f"its file can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise Unreadable("its file is broken: it isn't a .safetensors file") from error
    if not isinstance(header, dict):
        raise Unreadable("its file is broken: it isn't a .safetensors file")
    found = {name: each.get("shape") for name, each in header.items() if isinstance(each, dict)}
    return {name: shape if _is_shape(shape) else [] for name, shape in found.items() if len(name) <= LONGEST_NAME}


def _is_shape(given: Any) -> TypeGuard[list[int]]:
    return isinstance(given, list) and all(type(size) is int and size >= 0 for size in given)


def _gguf_shapes(path: Path) -> Shapes:
    package = _gguf_package()
    try:
        # GGUF has the dimensions the other way round.
        return {
            str(tensor.name): [int(size) for size in reversed(tensor.shape)]
            for tensor in package.GGUFReader(str(path)).tensors
        }
    except OSError as error:
        raise Unreadable(f"its file can't be read: {error.strerror}") from error
    except Exception as error:  # whatever the reader meets in a broken file
        raise Unreadable("its file is broken: it isn't a .gguf file") from error


def _gguf_package() -> Any:
    for name in GGUF_PACKAGES:
        try:
            return import_module(name)
        except ImportError:
            continue
    raise Unreadable("this WebUI has no package that reads .gguf files")
