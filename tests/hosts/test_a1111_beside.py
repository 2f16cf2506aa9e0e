"""AUTOMATIC1111's adapter beside extensions that guide with predictions of their own: each adds its own push, once.

The extensions are doubles: of sd-webui-incantations' PAG, which replaces `combine_denoised`, and of sd_webui_SAG, which
keeps rows in a `cfg_denoised` callback for one after the combination.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.hosts.a1111_double import CFGDenoiser, Host, Options
from tests.hosts.guided import FIRST, PLAIN, expected, guided
from tests.hosts.test_a1111 import CONSTANT, DENOISER_NAMES
from tests.hosts.test_a1111 import host as host
from tests.hosts.test_a1111 import unet as unet

SCALE = 3.0
# What the extensions' own weakened predictions are: these numbers in every place.
WEAK = 0.25


class Pag:
    """The double of incantations' PAG: its combination adds SCALE times what the conditional row is beyond WEAK."""

    def __init__(self, host: Host) -> None:
        host.callbacks.on_cfg_denoiser(self.patch)

    def patch(self, params: Any) -> None:
        denoiser: CFGDenoiser = params.denoiser
        original = type(denoiser).combine_denoised

        def combine(x_out: Tensor, conds_list: list[Any], uncond: Tensor, cond_scale: float) -> Tensor:
            firsts = [conds[0][0] for conds in conds_list]
            return original(denoiser, x_out, conds_list, uncond, cond_scale) + SCALE * (x_out[firsts] - WEAK)

        denoiser.combine_denoised = combine


class Sag:
    """The double of sd_webui_SAG: it adds SCALE times what the unconditional row is beyond WEAK."""

    def __init__(self, host: Host) -> None:
        self.kept = torch.empty(0)
        host.callbacks.on_cfg_denoised(self.keep)
        host.callbacks.on_cfg_after_cfg(self.add)

    def keep(self, params: Any) -> None:
        self.kept = params.x[-len(PLAIN) :]

    def add(self, params: Any) -> None:
        params.x = params.x + SCALE * (self.kept - WEAK)


@pytest.mark.parametrize("extension", [Pag, Sag])
@pytest.mark.parametrize("first", [True, False], ids=["loaded first", "loaded last"])
@pytest.mark.parametrize("denoiser", DENOISER_NAMES)
def test_each_adds_its_own_push_once(host: Host, extension: type, denoiser: str, first: bool) -> None:
    if first:
        callbacks = {name: list(each) for name, each in host.callbacks.known.items()}
        for each in host.callbacks.known.values():
            each.clear()
    extension(host)
    if first:
        for name, each in callbacks.items():
            host.callbacks.known[name].extend(each)
    host.options = Options(denoiser, passes=[FIRST])
    alone = host.sample()
    found = guided(host, Options(denoiser))
    wanted, _, without = expected(host, CONSTANT)
    for both, one, noise, plain in zip(found, alone, wanted, without, strict=True):
        push = noise - plain
        assert (both - one - push).abs().max() <= 1e-6 * push.abs().max()


def test_an_extension_that_combines_by_itself_leaves_asag_out_which_is_told(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(denoiser: CFGDenoiser, x: Tensor, sigma: Tensor) -> Tensor:
        given = SimpleNamespace(
            x=x, sigma=sigma, text_cond=PLAIN[0].negative[None], text_uncond=PLAIN[0].negative[None], denoiser=denoiser
        )
        host.callbacks.call("on_cfg_denoiser", given)
        out = denoiser.inner_model(x, sigma, cond={"c_crossattn": [torch.stack([each.negative for each in PLAIN])]})
        denoiser.step += 1
        return out

    monkeypatch.setattr(CFGDenoiser, "forward", forward)
    guided(host, Options())
    assert any("left out others" in note for note in host.comments)
