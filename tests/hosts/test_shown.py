"""Whose blocks the map shows, with a double of the host."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from asag.blocks import summarize
from asag.hosts.refused import Refused
from asag.hosts.shown import model_to_run, shown
from asag.models.forge_flux import ForgeFlux
from asag.models.ldm_unet import LdmUnet
from asag.preset_uses import Model
from tests.models.test_ldm_unet import SD15, build

FLUX = ["double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"]


class Host:
    """A double of the WebUI: `model` is loaded from one.safetensors, and `chosen` is chosen."""

    families = (LdmUnet(), ForgeFlux())

    def __init__(self, model, chosen=None):
        self.loaded, self.chosen = model, chosen

    def model(self):
        if self.loaded is None:
            raise Refused("ASAG: no model is loaded yet", 422)
        return self.loaded, self.families[0]

    def checkpoints(self, wanted=None):
        return self.loaded and SimpleNamespace(name="one.safetensors"), self.chosen


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return build(SD15)


def chosen(folder, names, name="two.safetensors"):
    save_file({each: torch.zeros(1, 1) for each in names}, folder / name)
    return SimpleNamespace(name=f"sub/{name}", filename=str(folder / name))


def test_the_loaded_one(unet):
    found = shown(Host(unet))
    assert (found.family.name, found.kind, found.checkpoint) == (LdmUnet.name, "UNet", "one.safetensors")
    assert list(found.addresses) == [layer.address for layer in LdmUnet().layers(unet)]
    assert (found.loaded, found.chosen, found.problem) == (True, None, None)


def test_the_chosen_one_by_its_file(unet, tmp_path):
    for model in (unet, None):
        found = shown(Host(model, chosen(tmp_path, FLUX)))
        assert (found.family.name, found.kind, found.checkpoint) == (ForgeFlux.name, "Flux", "sub/two.safetensors")
        assert summarize(found.addresses) == "double.0, single.0"
        assert (found.loaded, found.chosen, found.problem) == (False, None, None)


@pytest.mark.parametrize(
    ("names", "name", "problem"),
    [
        ([], "two.safetensors", "ASAG doesn't know the model in its file"),
        (["joint_blocks.0.x_block.attn.qkv.weight"], "two.safetensors", "it is SD3, which ASAG doesn't guide in this"),
        (FLUX, "two.ckpt", "ASAG can't read the blocks of a .ckpt file before it is loaded"),
    ],
)
def test_the_loaded_one_where_the_chosen_files_blocks_are_not_known(unet, tmp_path, names, name, problem):
    info = chosen(tmp_path, names, name)
    found = shown(Host(unet, info))
    assert (found.checkpoint, found.loaded, found.chosen) == ("one.safetensors", True, f"sub/{name}")
    assert found.problem.startswith(problem)
    with pytest.raises(Refused, match=rf"no model is loaded yet; sub/{name} is chosen: {problem}"):
        shown(Host(None, info))


def test_no_model_at_all():
    with pytest.raises(Refused, match=r"no model is loaded yet$"):
        shown(Host(None))


def test_the_model_that_presets_are_offered_for(unet, tmp_path):
    # "UNet" tells no models apart.
    assert model_to_run(Host(unet)) == Model("", "one.safetensors")
    for model in (unet, None):
        assert model_to_run(Host(model, chosen(tmp_path, FLUX))) == Model("Flux", "sub/two.safetensors")
        assert model_to_run(Host(model, chosen(tmp_path, FLUX, "two.ckpt"))) == Model("", "sub/two.ckpt")
    assert model_to_run(Host(None)) == Model("", "")
