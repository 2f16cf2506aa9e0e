"""What a checkpoint file holds, from its header, against the layers of the very UNet."""

import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from asag.hosts.checkpoints import Unreadable, contents
from asag.models.ldm_unet import LdmUnet
from tests.models.test_ldm_unet import SD15, SDXL, build

NAME = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
@pytest.mark.parametrize(("layout", "depth"), [(SD15, 1), (SDXL, 3), (SDXL, 11)])
def test_addresses_are_those_of_the_model(tmp_path, layout, depth, prefix):
    unet = build(layout, depth)
    path = tmp_path / "a.SafeTensors"
    tensors = {prefix + name: tensor.contiguous() for name, tensor in unet.state_dict().items()}
    save_file(tensors, path, metadata={"format": "pt"})
    found = contents(path)
    assert (found.kind, list(found.addresses)) == ("UNet", [layer.address for layer in LdmUnet().layers(unet)])


def test_the_width_of_the_text_tells_sdxl(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({NAME: torch.zeros(3, 5), NAME.replace("attn1.to_q", "attn2.to_k"): torch.zeros(3, 2048)}, path)
    assert contents(path).kind == "SDXL"


BROKEN = "its file is broken: it isn't a .safetensors file"
UNKNOWN = "ASAG doesn't know the model in its file"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", BROKEN),
        (b"\x01", BROKEN),
        (b"\xff" * 16, BROKEN),
        (b"\x02\0\0\0\0\0\0\0[]", BROKEN),
        (b"\x02\0\0\0\0\0\0\0{", BROKEN),
        (b"PK\x03\x04" * 100, BROKEN),
        (b"\x02\0\0\0\0\0\0\0{}", UNKNOWN),
        (b"\x12\0\0\0\0\0\0\0" + b'{"a": [1], "b": 2}', UNKNOWN),
        (b"\x11\0\0\0\0\0\0\0" + b'{"a":{"shape":3}}', UNKNOWN),
    ],
    ids=["empty", "short", "too long", "list", "cut", "pickle", "no tensors", "no objects", "no shapes"],
)
def test_what_is_no_checkpoint_says_why(tmp_path, content, reason):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=reason):
        contents(path)


@pytest.mark.parametrize("shape", [["a", "b"], [None, 1], [{}], [-1, 0], [True, True], [1e300, 2], [[3], [3]], "wide"])
def test_shapes_that_are_none_tell_nothing(tmp_path, shape):
    """The layers are known by their names, how many heads they have isn't."""
    header = json.dumps({"joint_blocks.0.x_block.attn.qkv.weight": {"shape": shape}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert (contents(path).kind, dict(contents(path).heads)) == ("SD3", {})


def test_names_with_thousands_of_digits_are_no_layers(tmp_path):
    header = json.dumps({NAME.replace("block.1", f"block.{'1' * 5000}"): {"shape": [3, 5]}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(Unreadable, match=UNKNOWN):
        contents(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(Unreadable, match="its file can't be read: No such file"):
        contents(tmp_path / "missing.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(Unreadable, match="its file can't be read: Is a directory"):
        contents(tmp_path / "folder.safetensors")
    for name, kind in (("a.ckpt", "a .ckpt file"), ("a.PT", "a .pt file"), ("a", "a nameless file")):
        (tmp_path / name).write_bytes(b"PK\x03\x04" * 100)
        with pytest.raises(Unreadable, match=f"{kind} before it is loaded"):
            contents(tmp_path / name)


@pytest.mark.parametrize("package", ["gguf", "modules_forge.packages.gguf"])
def test_gguf_is_read_by_the_hosts_package(tmp_path, monkeypatch, package):
    def read(path):
        """The double of gguf.GGUFReader: dimensions come the other way round."""
        if Path(path).read_bytes() == b"broken":
            raise ValueError("GGUF magic invalid")
        text = NAME.replace("attn1.to_q", "attn2.to_k")
        return SimpleNamespace(
            tensors=[SimpleNamespace(name=NAME, shape=[5, 3]), SimpleNamespace(name=text, shape=[2048, 3])]
        )

    parts = package.split(".")
    for count in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:count]), ModuleType(".".join(parts[:count])))
    sys.modules[package].GGUFReader = read
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF")
    found = contents(path)
    assert (found.kind, [str(address) for address in found.addresses]) == ("SDXL", ["mid.0"])
    path.write_bytes(b"broken")
    with pytest.raises(Unreadable, match=r"its file is broken: it isn't a \.gguf file"):
        contents(path)


def test_without_the_package_gguf_cannot_be_read(tmp_path, monkeypatch):
    for name in ("gguf", "modules_forge.packages.gguf"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(Unreadable, match=r"this WebUI has no package that reads \.gguf files"):
        contents(tmp_path / "a.gguf")


def test_a_file_is_read_again_when_it_changed(tmp_path):
    path = tmp_path / "a.safetensors"
    tensor = build(SD15).state_dict()["middle_block.1.transformer_blocks.0.attn1.to_q.weight"]
    for count in (1, 2):
        save_file({NAME.replace("blocks.0", f"blocks.{number}"): tensor.clone() for number in range(count)}, path)
        os.utime(path, (count, count))
        assert len(contents(path).addresses) == count
        assert contents(path) is contents(path)
