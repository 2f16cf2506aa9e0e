"""Lets Forge and Forge Neo load the tiny checkpoints of tests/webui/make_checkpoints_forge.py, whose sizes are in their
metadata; both know the sizes of most models beforehand. Other checkpoints are loaded as ever."""

import functools
import importlib
import importlib.util
import json
import operator
import tempfile
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open

IS_NEO = bool(importlib.util.find_spec("modules_forge") and importlib.util.find_spec("modules_forge.packages"))


def sizes_of(path):
    if str(path).endswith(".gguf"):
        gguf = importlib.import_module("modules_forge.packages.gguf" if IS_NEO else "gguf")
        field = gguf.GGUFReader(path).get_field("asag_sizes")
        return json.loads(bytes(field.parts[-1])) if field is not None else None
    if not str(path).endswith(".safetensors"):
        return None
    with safe_open(path, framework="pt") as file:
        return json.loads((file.metadata() or {}).get("asag_sizes", "null"))


class SmallSizes:
    """The sizes of the checkpoint that is being loaded, put where the host looks them up."""

    def __init__(self, loader, detection):
        self.sizes = None
        self.split, self.load, self.detect = (
            loader.split_state_dict,
            loader.load_huggingface_component,
            detection.detect_unet_config,
        )
        loader.split_state_dict, loader.load_huggingface_component = self.split_state_dict, self.load_component
        detection.detect_unet_config = self.detect_config

    def split_state_dict(self, path, *args, **kwargs):
        self.sizes = sizes_of(path)
        try:
            return self.split(path, *args, **kwargs)
        finally:
            # ControlNets are detected by the same function, later.
            self.sizes = self.sizes and {**self.sizes, "detected": None}

    def detect_config(self, *args, **kwargs):
        if self.sizes and self.sizes["detected"]:
            return dict(self.sizes["detected"])
        return self.detect(*args, **kwargs)

    def load_component(self, guess, name, library, cls, repository, state_dict):
        is_denoiser = name in ("unet", "transformer")
        if self.sizes and self.sizes["denoiser"] and is_denoiser:
            guess.unet_config = dict(self.sizes["denoiser"])
        if self.sizes and state_dict and not IS_NEO and not is_denoiser:
            # Forge takes the other parts from files of their own, where a GGUF has the denoiser alone.
            state_dict = {key: value.data if hasattr(value, "gguf_cls") else value for key, value in state_dict.items()}
        if not self.sizes or name not in self.sizes["configs"]:
            return self.load(guess, name, library, cls, repository, state_dict)
        config = json.loads((Path(repository) / name / "config.json").read_text())
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / name).mkdir()
            (Path(folder) / name / "config.json").write_text(json.dumps({**config, **self.sizes["configs"][name]}))
            with changed_language_models(self.sizes["dataclasses"], self.sizes["classes"]):
                return self.load(guess, name, library, cls, folder, state_dict)


@contextmanager
def changed_language_models(sizes, classes):
    """Neo's have their sizes in dataclasses, compare the file's with them, and are chosen by them; parts of them have
    theirs in a class's arguments or a dict."""
    if not sizes:
        yield
        return
    llama = importlib.import_module("backend.nn.llm.llama")
    before = {name: operator.attrgetter(name)(llama) for name in (*sizes, *classes)}
    for name in sizes:
        made = before[name]
        changed = {**made, **sizes[name]} if isinstance(made, dict) else functools.partial(made, **sizes[name])
        put(llama, name, changed)
    for name, other in classes.items():
        setattr(llama, name, getattr(llama, other))
    try:
        yield
    finally:
        for name, made in before.items():
            put(llama, name, made)


def put(module, name, made):
    """`name` may lie in a module of that one's."""
    home, _, last = name.rpartition(".")
    setattr(operator.attrgetter(home)(module) if home else module, last, made)


try:
    from backend import loader
    from huggingface_guess import detection
except ImportError:
    pass  # A1111 and reForge: they load no such checkpoints
else:
    SmallSizes(loader, detection)
