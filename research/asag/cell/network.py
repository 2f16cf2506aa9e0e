"""A network that was not trained here: a Keras model as the npm package nsfwjs (MIT) ships it, read without tfjs.

A folder of it, such as node_modules/nsfwjs/dist/models/mobilenet_v2, has model.min.js (the layers) and group1-shard*.js
(the weights, 8 bits each, as base64). Layers of other kinds than those here are refused by name.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Layer = dict[str, Any]
_BATCH = {"cpu": 16, "cuda": 256}


class NetworkError(ValueError):
    """A file isn't what it should be, or a layer is of a kind that isn't known. The message names it."""


def literal(path: Path) -> Any:
    """The object or the string that a module of JavaScript exports.

    Raises NetworkError, naming the file, where it exports neither.
    """
    try:
        text = path.read_text()
        found = re.search(r'exports=(?="|\{)', text)
        if found is None:
            raise ValueError("no object and no string is exported")
        value, _ = json.JSONDecoder().raw_decode(_as_json(text[found.end() :]))
    except (OSError, ValueError) as error:
        raise NetworkError(f"{path}: {error}; allowed: a file of nsfwjs's dist/models") from error
    return value


def _as_json(text: str) -> str:
    """A minified object literal as JSON; a string stays what it is."""
    if text.startswith('"'):
        return text
    text = re.sub(r"([{,])([A-Za-z_$][\w$]*):", r'\1"\2":', text)
    text = text.replace(":!0", ":true").replace(":!1", ":false")
    return re.sub(r"(?<=[:\[,])(-?)\.(\d)", r"\g<1>0.\2", text)


def read_weights(folder: Path, manifest: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The weights by their names, float32. Raises NetworkError where there are fewer than the manifest says."""
    found = {}
    for group in manifest:
        data = b"".join(base64.b64decode(literal(folder / f"{name}.min.js")) for name in group["paths"])
        at = 0
        for each in group["weights"]:
            how = each.get("quantization", {"dtype": each["dtype"], "scale": 1.0, "min": 0.0})
            kind, count = np.dtype(how["dtype"]), prod(each["shape"])
            if at + count * kind.itemsize > len(data):
                raise NetworkError(f"{folder}: the weights end before {each['name']}; allowed: all of nsfwjs's files")
            values = np.frombuffer(data, kind, count, at).astype(np.float64) * how["scale"] + how["min"]
            found[each["name"]] = torch.from_numpy(values.reshape(each["shape"])).float()
            at += count * kind.itemsize
    return found


class Network:
    """The layers up to the one that flattens, in torch, in float32 on a device."""

    def __init__(self, folder: Path, device: torch.device = torch.device("cpu")) -> None:  # noqa: B008
        model = literal(folder / "model.min.js")
        self.digest = hashlib.sha256((folder / "model.min.js").read_bytes()).hexdigest()[:12]
        try:
            layers = model["modelTopology"]["model_config"]["config"]["layers"]
            manifest = model["weightsManifest"]
        except (KeyError, TypeError) as error:
            raise NetworkError(f"{folder}: no {error}; allowed: a model of layers, not a graph") from error
        self.layers: list[Layer] = layers
        self.device = device
        self.weights = {name: each.to(device) for name, each in read_weights(folder, manifest).items()}
        unknown = sorted({layer["class_name"] for layer in layers} - _KINDS.keys() - _HEAD)
        if unknown:
            raise NetworkError(f"{folder}: layers of {', '.join(unknown)}; allowed: {', '.join(sorted(_KINDS))}")
        for layer in layers:
            wanted = {"Activation": "relu", "Conv2D": "linear", "DepthwiseConv2D": "linear"}.get(layer["class_name"])
            if wanted and layer["config"]["activation"] != wanted:
                raise NetworkError(f"{layer['name']}: {layer['config']['activation']}; allowed: {wanted}")
        self.side: int = layers[0]["config"]["batch_input_shape"][1]

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """images (B,3,H,W) in [-1,1] -> (B,features) on the network's device: what goes into the layers that name a
        class."""
        parts = images.split(_BATCH[self.device.type])
        return torch.cat([self._features(part.to(self.device)) for part in parts])

    def _features(self, images: Tensor) -> Tensor:
        # As nsfwjs prepares pictures.
        size = (self.side, self.side)
        resized = F.interpolate((images + 1) / 2, size=size, mode="bilinear", align_corners=True)
        # A GPU convolves faster with channels last.
        values = {self.layers[0]["name"]: resized.contiguous(memory_format=torch.channels_last)}
        for layer in self.layers[1:]:
            inputs = [values[node[0]] for node in layer["inbound_nodes"][0]]
            values[layer["name"]] = _KINDS[layer["class_name"]](layer["config"], inputs, self.weights)
            if layer["class_name"] == "Flatten":
                return values[layer["name"]]
        raise NetworkError("the model has no Flatten; allowed: mobilenet_v2 or inception_v3 of nsfwjs")


def _padding(config: Mapping[str, Any], size: list[int]) -> tuple[int, int]:
    if config["padding"] == "valid":
        return (0, 0)
    if config["strides"] != [1, 1] or not all(each % 2 for each in size):
        raise NetworkError(f"{config['name']}: padding {config['padding']} with strides {config['strides']} of {size}")
    return (size[0] // 2, size[1] // 2)


def _convolved(config: Mapping[str, Any], inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    kernel = weights[f"{config['name']}/kernel"].permute(3, 2, 0, 1)
    bias = weights.get(f"{config['name']}/bias")
    return F.conv2d(inputs[0], kernel, bias, config["strides"], _padding(config, config["kernel_size"]))


def _depthwise(config: Mapping[str, Any], inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    kernel = weights[f"{config['name']}/depthwise_kernel"].permute(2, 3, 0, 1)
    padding = _padding(config, config["kernel_size"])
    return F.conv2d(inputs[0], kernel, None, config["strides"], padding, groups=len(kernel))


def _normed(config: Mapping[str, Any], inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    name, epsilon = config["name"], config["epsilon"]
    mean, variance = weights[f"{name}/moving_mean"], weights[f"{name}/moving_variance"]
    return F.batch_norm(inputs[0], mean, variance, weights.get(f"{name}/gamma"), weights[f"{name}/beta"], eps=epsilon)


def _rectified(config: Mapping[str, Any], inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    return inputs[0].clamp(0, config.get("max_value"))


def _averaged(config: Mapping[str, Any], inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    size = config["pool_size"]
    return F.avg_pool2d(inputs[0], size, config["strides"], _padding(config, size), count_include_pad=False)


def _largest(config: Mapping[str, Any], inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    return F.max_pool2d(inputs[0], config["pool_size"], config["strides"], _padding(config, config["pool_size"]))


def _bordered(config: Mapping[str, Any], inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    (top, bottom), (left, right) = config["padding"]
    return F.pad(inputs[0], (left, right, top, bottom))


def _flat(config: Mapping[str, Any], inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    return inputs[0].permute(0, 2, 3, 1).flatten(1)  # in Keras channels come last


_HEAD = {"InputLayer", "Dense", "Dropout"}  # before and behind what is looked through
_KINDS: dict[str, Callable[[Mapping[str, Any], list[Tensor], Mapping[str, Tensor]], Tensor]] = {
    "Conv2D": _convolved,
    "DepthwiseConv2D": _depthwise,
    "BatchNormalization": _normed,
    "Activation": _rectified,
    "ReLU": _rectified,
    "AveragePooling2D": _averaged,
    "MaxPooling2D": _largest,
    "ZeroPadding2D": _bordered,
    "Add": lambda config, inputs, weights: torch.stack(inputs).sum(0),
    "Concatenate": lambda config, inputs, weights: torch.cat(inputs, 1),
    "Flatten": _flat,
}
