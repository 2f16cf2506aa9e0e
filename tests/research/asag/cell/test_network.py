"""A network as nsfwjs ships it, read without tfjs: against loops over pixels in float64."""

import base64
import json
import re

import numpy as np
import pytest
import torch

from research.asag.cell.network import Network, NetworkError, literal


def after(name, kind, inputs, **config):
    nodes = [[[each, 0, 0, {}] for each in inputs]]
    return {"name": name, "class_name": kind, "config": {"name": name, **config}, "inbound_nodes": nodes}


LAYERS = [
    {"name": "in", "class_name": "InputLayer", "config": {"batch_input_shape": [None, 9, 9, 3]}, "inbound_nodes": []},
    after("pad", "ZeroPadding2D", ["in"], padding=[[0, 1], [0, 1]]),
    after("c1", "Conv2D", ["pad"], kernel_size=[3, 3], strides=[2, 2], padding="valid", activation="linear"),
    after("bn", "BatchNormalization", ["c1"], epsilon=0.001),
    after("r6", "ReLU", ["bn"], max_value=0.9),
    after("dw", "DepthwiseConv2D", ["r6"], kernel_size=[3, 3], strides=[1, 1], padding="same", activation="linear"),
    after("sum", "Add", ["r6", "dw"]),
    after("relu", "Activation", ["sum"], activation="relu"),
    after("mean", "AveragePooling2D", ["relu"], pool_size=[3, 3], strides=[1, 1], padding="same"),
    after("most", "MaxPooling2D", ["relu"], pool_size=[2, 2], strides=[2, 2], padding="valid"),
    after("wide", "Conv2D", ["mean"], kernel_size=[1, 3], strides=[1, 1], padding="same", activation="linear"),
    after("less", "AveragePooling2D", ["wide"], pool_size=[2, 2], strides=[2, 2], padding="valid"),
    after("both", "Concatenate", ["most", "less"]),
    after("flat", "Flatten", ["both"]),
    after("head", "Dense", ["flat"], units=2),
]
SHAPES = {
    **{"c1/kernel": [3, 3, 3, 4], "bn/gamma": [4], "bn/beta": [4], "bn/moving_mean": [4], "bn/moving_variance": [4]},
    **{"dw/depthwise_kernel": [3, 3, 4, 1], "wide/kernel": [1, 3, 4, 2]},
}


def minified(value):
    """As a minifier writes an object: bare names, !0 and !1, and no 0 before a point."""
    text = re.sub(r'"([A-Za-z_]\w*)":', r"\1:", json.dumps(value, separators=(",", ":")))
    text = text.replace(":true", ":!0").replace(":false", ":!1")
    return re.sub(r"([:\[,]-?)0\.", r"\1.", text)


def module(content):
    return f"!function(e){{e()}}(function(){{return{{1:[function(a,b,c){{c.exports={content}}},{{}}]}}}});"


def write(folder, layers=LAYERS, cut=0):
    """A folder of the network; its weights in float64 by name."""
    generator = np.random.default_rng(0)
    manifest, data, weights = [], b"", {}
    for name, shape in SHAPES.items():
        stored = generator.integers(0, 256, shape, dtype=np.uint8)
        low = 0.1 if "variance" in name else -0.5
        how = {"dtype": "uint8", "scale": 1 / 256, "min": low}
        manifest.append({"name": name, "shape": shape, "dtype": "float32", "quantization": how})
        data, weights[name] = data + stored.tobytes(), stored / 256 + low
    paths = ["group1-shard1of2", "group1-shard2of2"]
    topology = {"modelTopology": {"trainable": True, "model_config": {"config": {"layers": layers}}}}
    model = topology | {"weightsManifest": [{"paths": paths, "weights": manifest}]}
    folder.mkdir()
    (folder / "model.min.js").write_text(module(minified(model)))
    for path, part in zip(paths, (data[:30], data[30 : len(data) - cut]), strict=True):
        (folder / f"{path}.min.js").write_text(module(json.dumps(base64.b64encode(part).decode())))
    return weights


def slid(picture, size, stride, function):
    """`function` of each window of a picture (H,W,C)."""
    rows = range(0, picture.shape[0] - size[0] + 1, stride)
    columns = range(0, picture.shape[1] - size[1] + 1, stride)
    return np.array([[function(picture[r : r + size[0], c : c + size[1]]) for c in columns] for r in rows])


def by_hand(picture, w):
    """What goes into the last layer, of a picture (9,9,3) in [0,1]."""
    hidden = slid(
        np.pad(picture, ((0, 1), (0, 1), (0, 0))), (3, 3), 2, lambda x: np.einsum("ijc,ijco->o", x, w["c1/kernel"])
    )
    hidden = (hidden - w["bn/moving_mean"]) / np.sqrt(w["bn/moving_variance"] + 0.001) * w["bn/gamma"] + w["bn/beta"]
    hidden = hidden.clip(0, 0.9)
    around = np.pad(hidden, ((1, 1), (1, 1), (0, 0)))
    hidden = hidden + slid(around, (3, 3), 1, lambda x: np.einsum("ijc,ijc->c", x, w["dw/depthwise_kernel"][..., 0]))
    hidden = hidden.clip(0)
    inside = np.pad(np.ones_like(hidden), ((1, 1), (1, 1), (0, 0)))
    total = slid(np.pad(hidden, ((1, 1), (1, 1), (0, 0))), (3, 3), 1, lambda x: x.sum((0, 1)))
    mean = total / slid(inside, (3, 3), 1, lambda x: x.sum((0, 1)))
    wide = slid(
        np.pad(mean, ((0, 0), (1, 1), (0, 0))), (1, 3), 1, lambda x: np.einsum("ijc,ijco->o", x, w["wide/kernel"])
    )
    most, less = (
        slid(each, (2, 2), 2, f) for each, f in ((hidden, lambda x: x.max((0, 1))), (wide, lambda x: x.mean((0, 1))))
    )
    return np.concatenate([most, less], 2).ravel()


def test_features_are_those_of_loops_over_pixels(tmp_path):
    weights = write(tmp_path / "net")
    images = torch.rand(3, 3, 9, 9, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found = Network(tmp_path / "net").features(images)
    for row, image in zip(found, images, strict=True):
        expected = by_hand(((image + 1) / 2).double().permute(1, 2, 0).numpy(), weights)
        assert expected.std() > 0.05
        assert row.double().numpy() == pytest.approx(expected, abs=1e-5)


def test_pictures_of_another_size_are_resized_corner_to_corner(tmp_path):
    write(tmp_path / "net")
    network = Network(tmp_path / "net")
    small = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(2)) * 2 - 1
    rows = torch.linspace(0, 4, 9)
    low = rows.long().clamp(max=3)
    part = rows - low
    tall = small[:, :, low] * (1 - part)[:, None] + small[:, :, low + 1] * part[:, None]
    large = tall[..., low] * (1 - part) + tall[..., low + 1] * part
    assert torch.allclose(network.features(small), network.features(large), atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"class_name": "LSTM"}, "layers of LSTM; allowed: Activation, Add"),
        ({"config": {"name": "relu", "activation": "tanh"}}, "relu: tanh; allowed: relu"),
    ],
)
def test_layers_that_are_not_known_are_refused_by_name(tmp_path, changed, message):
    layers = [layer | changed if layer["name"] == "relu" else layer for layer in LAYERS]
    write(tmp_path / "net", layers)
    with pytest.raises(NetworkError, match=message):
        Network(tmp_path / "net")


def test_padding_that_is_not_known_is_refused(tmp_path):
    config = {"kernel_size": [3, 3], "strides": [2, 2], "padding": "same", "activation": "linear"}
    write(
        tmp_path / "net",
        [after("c1", "Conv2D", ["pad"], **config) if each["name"] == "c1" else each for each in LAYERS],
    )
    with pytest.raises(NetworkError, match=r"c1: padding same with strides \[2, 2\]"):
        Network(tmp_path / "net").features(torch.zeros(1, 3, 9, 9))


def test_files_that_are_missing_cut_or_something_else_are_named(tmp_path):
    write(tmp_path / "cut", cut=1)
    with pytest.raises(NetworkError, match="the weights end before wide/kernel"):
        Network(tmp_path / "cut")
    with pytest.raises(NetworkError, match=r"model.min.js: .*; allowed: a file of nsfwjs"):
        Network(tmp_path / "nothing")
    (tmp_path / "graph.js").write_text(module("{modelTopology:{node:[]}}"))
    assert literal(tmp_path / "graph.js") == {"modelTopology": {"node": []}}
    (tmp_path / "cut" / "model.min.js").write_text(module("{modelTopology:{node:[]}}"))
    with pytest.raises(NetworkError, match="no 'model_config'; allowed: a model of layers, not a graph"):
        Network(tmp_path / "cut")
    (tmp_path / "plain.js").write_text("let x = 1")
    with pytest.raises(NetworkError, match="no object and no string is exported"):
        literal(tmp_path / "plain.js")
