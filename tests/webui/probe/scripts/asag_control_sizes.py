"""Lets ControlNet in AUTOMATIC1111 load the small files of tests/webui/make_checkpoints_a1111.py: it takes the width of
a ControlNet and the depth of its image encoder from its own tables. Full-sized files are loaded as ever."""

import importlib
import sys
from pathlib import Path

import torch
from modules import script_callbacks

SMALL = 500 * 2**20  # bytes; the published image encoder has five times as many


def read_widths(guess):
    """Make every ControlNet as wide as the weights that it is about to load."""
    make = guess.PlugableControlModel

    def made(config, state_dict=None):
        first = (state_dict or {}).get("input_blocks.0.0.weight")
        return make(config if first is None else {**config, "model_channels": len(first)}, state_dict)

    guess.PlugableControlModel = made


def read_depth(clipvision):
    """Make the image encoder as deep as its file, and as wide inside."""
    file = Path(clipvision.models_path) / "clip_vision" / "clip_h.pth"
    if not file.exists() or file.stat().st_size > SMALL:
        return
    weights = torch.load(file, map_location="cpu")
    layers = {key.split(".")[3] for key in weights if key.startswith("vision_model.encoder.layers.")}
    inner = len(weights["vision_model.encoder.layers.0.mlp.fc1.weight"])
    clipvision.configs["clip_h"] |= {"num_hidden_layers": len(layers), "intermediate_size": inner}


def on_app_started(_, app):
    # A1111's ControlNet; Forge's relatives have another of their own.
    if "scripts.controlnet_model_guess" in sys.modules:
        read_widths(sys.modules["scripts.controlnet_model_guess"])
        read_depth(importlib.import_module("annotator.clipvision"))


script_callbacks.on_app_started(on_app_started)
