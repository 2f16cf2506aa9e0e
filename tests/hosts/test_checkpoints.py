"""A checkpoint's blocks, from its header, against the layers of the very UNet."""

import pytest
from safetensors.torch import save_file

from asag.hosts.checkpoints import tensor_names, unet_addresses
from asag.models.ldm_unet import LdmUnet
from tests.models.test_ldm_unet import SD15, SDXL, build


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
@pytest.mark.parametrize(("layout", "depth"), [(SD15, 1), (SDXL, 3), (SDXL, 11)])
def test_addresses_are_those_of_the_model(tmp_path, layout, depth, prefix):
    unet = build(layout, depth)
    path = tmp_path / "a.safetensors"
    save_file({prefix + name: tensor.contiguous() for name, tensor in unet.state_dict().items()}, path)
    assert unet_addresses(path) == [layer.address for layer in LdmUnet().layers(unet)]


@pytest.mark.parametrize(
    "content",
    [b"", b"\x01", b"\xff" * 16, b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0{", b"PK\x03\x04" * 100],
    ids=["empty", "short", "too long", "list", "cut", "pickle"],
)
def test_what_is_no_safetensors_file_has_none(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert tensor_names(path) == unet_addresses(path) == []
    assert unet_addresses(tmp_path / "missing.safetensors") == []
