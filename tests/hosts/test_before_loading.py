"""What is refused before a checkpoint loads, in a double of the host's process_images."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from asag.hosts import before_loading
from asag.hosts.refused import Refused
from asag.models.forge_flux import ForgeFlux
from asag.models.ldm_unet import LdmUnet
from asag.settings import AsagSettings

FLUX = ["double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight", "single_blocks.1.linear1.weight"]
SD3 = ["joint_blocks.0.x_block.attn.qkv.weight"]


class Host:
    """A double of the WebUI: it has SD1.5 loaded, and loads what a request names."""

    families = (LdmUnet(), ForgeFlux())

    def __init__(self, folder):
        self.files = {}
        for name, tensors in (("flux", FLUX), ("sd3", SD3)):
            self.files[name] = SimpleNamespace(name=f"{name}.safetensors", filename=str(folder / f"{name}.safetensors"))
            save_file({each: torch.zeros(1, 1) for each in tensors}, self.files[name].filename)
        self.files["broken"] = SimpleNamespace(name="broken.ckpt", filename=str(folder / "broken.ckpt"))
        self.loaded = "sd15"

    def checkpoints(self, wanted=None):
        return None, self.files.get(wanted)

    def process_images(self, p, settings):
        """As modules/processing.py does it: what before_process raises is swallowed, then come the overrides."""
        before_loading.check(self, p, lambda: AsagSettings.from_mapping(settings))
        before = dict.fromkeys(p.override_settings.keys())
        self.loaded = p.override_settings.get("sd_model_checkpoint", self.loaded)
        return before


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def request(checkpoint, **more):
    return SimpleNamespace(override_settings={"sd_model_checkpoint": checkpoint, "eta": 1}, **more)


@pytest.mark.parametrize(
    ("settings", "more", "message"),
    [
        (
            {"blocks": "single.0, mid"},
            {},
            "ASAG settings: blocks: flux.safetensors lacks 'mid'; this model has: double.0, single.0-1",
        ),
        ({"blocks": "single.2"}, {}, "blocks: flux.safetensors lacks 'single.2'"),
        (
            {"hires_blocks": "out.3"},
            {"enable_hr": True, "hr_checkpoint_name": "Use same checkpoint"},
            "hires_blocks: flux.safetensors lacks 'out.3'",
        ),
        ({"scale": -1}, {}, "scale: -1; allowed:"),
    ],
    ids=["a list", "a number", "hires", "a bad value"],
)
def test_refused_before_it_loads(host, settings, more, message):
    p = request("flux", **more)
    for _ in range(2):
        with pytest.raises(Refused) as refused:
            host.process_images(p, {"enabled": True, **settings})
        assert message in refused.value.detail
        assert refused.value.status_code == 422
        assert host.loaded == "sd15"
        # Other scripts still find what was asked for.
        assert (p.override_settings["sd_model_checkpoint"], p.override_settings.get("eta")) == ("flux", 1)
    # What scripts do with a request that is asked for again, with other settings.
    assert host.process_images(p, {"enabled": True}) == {"sd_model_checkpoint": None, "eta": None}


@pytest.mark.parametrize(
    ("checkpoint", "settings", "more"),
    [
        ("flux", {"blocks": "single.0-1"}, {}),
        ("flux", {"blocks": "late"}, {}),
        ("flux", {"blocks": "mid", "enabled": False}, {}),
        ("flux", {"blocks": "mid", "scale": 0}, {}),
        # The hires pass runs another model, and only then comes the list of the first.
        ("flux", {"hires_blocks": "mid"}, {"enable_hr": True, "hr_checkpoint_name": "other"}),
        ("flux", {"hires_blocks": "mid"}, {}),
        ("flux", {"blocks": "mid"}, {"txt2img_upscale": True}),
        # Loaded already, not guided here, not to be told: the model itself will tell.
        ("unknown", {"blocks": "joint.5"}, {}),
        ("sd3", {"blocks": "joint.5"}, {}),
        ("broken", {"blocks": "joint.5"}, {}),
    ],
)
def test_what_may_run_goes_on(host, checkpoint, settings, more):
    p = request(checkpoint, **more)
    host.process_images(p, {"enabled": True, **settings})
    assert host.loaded == checkpoint
    assert type(p.override_settings) is dict
