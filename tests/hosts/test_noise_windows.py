"""Windows by noise in whole requests, against the definition: a real UNet in the doubles of A1111 and Forge."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from asag.hosts.generation import arm
from asag.hosts.refused import Refused
from asag.noise import NoiseSchedule
from asag.settings import AsagSettings
from tests.hosts import a1111_double, test_heads_in_hosts
from tests.hosts.guided import FIRST, assert_steps, guided
from tests.hosts.reference import ALPHAS, real_unet
from tests.support import snapshot

host = test_heads_in_hosts.host  # a fixture
TIMESTEPS = (801, 601, 401, 201)
SHARES = [1 - timestep / 999 for timestep in TIMESTEPS]


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return real_unet()


def level(timestep: int) -> str:
    return f"sigma {float(((1 - ALPHAS[timestep]) / ALPHAS[timestep]).sqrt()):.5f}"


WINDOWS = [
    ({"start": "30%", "end": "70%"}, [0, 2, 2, 0]),
    ({"start": level(700), "end": level(300)}, [0, 2, 2, 0]),
    ({"end": level(700)}, [2, 0, 0, 0]),
    ({"start": "50%"}, [0, 0, 2, 2]),
    ({"start": "30%", "end": "90%", "schedule": "linear"}, [0, *(2 * (0.9 - each) / 0.6 for each in SHARES[1:])]),
]


@pytest.mark.parametrize(("settings", "scales"), WINDOWS)
def test_the_guided_steps(host: Any, settings: dict[str, Any], scales: list[float]) -> None:
    options = host.new_options(passes=[FIRST + FIRST], timesteps=TIMESTEPS)
    found = guided(host, options, **settings)
    # The place in the window is known to a millionth.
    assert_steps(host, found, [[scale and scale - 2 * 1e-6 / 0.6 * ("schedule" in settings) for scale in scales]])


@pytest.mark.parametrize("denoiser", ["noise", "velocity"])
def test_samplers_of_timesteps(unet: nn.Module, monkeypatch: pytest.MonkeyPatch, denoiser: str) -> None:
    """DDIM, PLMS and UniPC of A1111, whose sigma is an integer timestep."""
    from tests.hosts import test_a1111

    for host in test_a1111.host.__wrapped__(unet, monkeypatch):
        for settings, scales in WINDOWS[:2]:
            options = a1111_double.Options(denoiser, passes=[FIRST + FIRST], timesteps=TIMESTEPS)
            assert_steps(host, guided(host, options, **settings), [scales])


@pytest.mark.parametrize("kind", ["Forge", "reForge"])
def test_flow_matching_models_of_forge_and_reforge(unet: nn.Module, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    from tests.hosts import test_forge_arithmetic

    class CONST:
        """The double of a class among those of reForge's model_sampling."""

    for host in test_forge_arithmetic.host.__wrapped__(unet, monkeypatch):
        run = sys.modules["asag.hosts.forge"].ForgeRun(AsagSettings(end="60%"))
        if kind == "Forge":
            host.model.predictor = SimpleNamespace(prediction_type="const", sigmas=torch.tensor([0.1, 1.0]))
        else:
            del host.model.predictor
            host.model.model_sampling = CONST()
        denoiser = SimpleNamespace(inner_model=SimpleNamespace(inner_model=host.sd_model))
        schedule, share = run.noise(SimpleNamespace(denoiser=denoiser, sigma=torch.tensor([0.7, 0.7])))
        assert schedule.sigmas == ()
        assert share == pytest.approx(0.3)


def test_a_noise_schedule_that_cannot_be_read_ends_the_request(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the callback raises the host swallows: the picture would be unguided, and a window be blamed."""

    def share(schedule: NoiseSchedule, sigma: float) -> float:
        raise AttributeError("no sigmas")

    monkeypatch.setattr(NoiseSchedule, "share", share)
    host.options = host.new_options(passes=[FIRST + FIRST], timesteps=TIMESTEPS)
    chosen = AsagSettings(enabled=True, start="30%")
    arm(host.adapter, host.p, chosen, unguided=lambda: None)
    before = snapshot(host.network())
    with pytest.raises(Refused, match=r"^ASAG: the model's noise schedule can't be read: AttributeError: no sigmas$"):
        host.p.sample()
    assert snapshot(host.network()) == before


def test_a_window_that_no_step_meets_is_told(host: Any) -> None:
    guided(host, host.new_options(passes=[FIRST + FIRST], timesteps=TIMESTEPS), start="99%")
    assert host.comments == [
        "ASAG guided no step of this image: no step lies between start and end, or the setting Hires fix is hires "
        "and there was no hires pass; change these settings"
    ]
