"""Start and end by noise: what is read, what share of a model's noise schedule it is, and which steps are guided."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from asag.guidance import SCHEDULES, scheduled_scale
from asag.noise import NoiseSchedule, Window, read_noise
from asag.presets import read_shared, write_shared
from asag.settings import AsagSettings, SettingsError
from asag.webui import api, infotext, xyz
from tests.test_settings import PlotDouble

# Of SD1.5 and SDXL.
EULER = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
SD = NoiseSchedule.of_alphas(EULER.alphas_cumprod.tolist())
FLOW = NoiseSchedule()


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("60%", "60%"),
        (" 12.5 % ", "12.5%"),
        ("0%", "0%"),
        ("100%", "100%"),
        (".5%", "0.5%"),
        ("σ 5.4", "sigma 5.4"),
        ("Σ5.40", "sigma 5.4"),
        ("sigma 5.4", "sigma 5.4"),
        ("SIGMA = 0.03", "sigma 0.03"),
        ("sigma 0", "sigma 0"),
        ("0.000000001%", "0.000000001%"),
        ("sigma .00001", "sigma 0.00001"),
        ("sigma 12345.678912345", "sigma 12345.678912345"),
        ("0.5", None),
        ("101%", None),
        ("-5%", None),
        ("%", None),
        ("sigma", None),
        ("sigma -1", None),
        ("sigma 1e9", None),
        ("sigma 999999", None),
        ("5.4", None),
        ("s 5", None),
        ("٥%", None),
        ("60%%", None),
        ("nan%", None),
        # A pattern that tries each way to share the blanks out would take hours.
        pytest.param("sigma" + " " * 1_000_000, None, id="a megabyte"),
    ],
)
def test_what_is_read(text: str, kept: str | None) -> None:
    assert read_noise(text) == kept
    assert kept is None or read_noise(kept) == kept


@pytest.mark.parametrize(
    ("value", "kept"), [("60%", "60%"), ("σ 5.4", "sigma 5.4"), (0.25, 0.25), ("0.25", 0.25), (1, 1.0), ("1", 1.0)]
)
def test_settings_take_numbers_and_noise(value: Any, kept: Any) -> None:
    settings = AsagSettings.from_mapping({"enabled": True, "start": value, "end": 1})
    assert settings.start == kept
    assert type(settings.start) is type(kept)


@pytest.mark.parametrize("value", ["120%", "sigma x", "half", 1.5, "2", True, None, [1], "5.4"])
def test_an_error_says_what_is_allowed(value: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        AsagSettings.from_mapping({"end": value})
    (problem,) = caught.value.problems
    assert problem.startswith("end: ")
    allowed = "a number from 0 to 1, a noise level such as sigma 5.4, or 0% to 100% of the noise schedule"
    assert problem.endswith(f"; allowed: {allowed}")


@pytest.mark.parametrize(("start", "end"), [("sigma 5", 0.5), (0.2, "60%"), ("10%", 0.9)])
def test_a_fraction_of_the_steps_beside_noise_is_refused(start: Any, end: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        AsagSettings.from_mapping({"start": start, "end": end, "scale": -1})
    allowed = "two fractions of the steps, or two of noise (sigma, %); 0 and 1 go with both"
    assert caught.value.problems[1:] == [f"start: {start} with end: {end}; allowed: {allowed}"]


@pytest.mark.parametrize(
    ("start", "end", "empty"),
    [
        ("sigma 5", "sigma 2", False),
        ("sigma 2", "sigma 5", True),
        ("sigma 2", "sigma 2", True),
        ("20%", "60%", False),
        ("60%", "20%", True),
        ("20%", "sigma 2", False),
        ("sigma 2", "20%", False),
        (0.0, "60%", False),
        ("20%", 1.0, False),
        ("20%", 0.0, True),
        (1.0, "sigma 2", True),
    ],
)
def test_windows_that_are_empty_say_so(start: Any, end: Any, empty: bool) -> None:
    settings = AsagSettings.from_mapping({"enabled": True, "start": start, "end": end})
    assert settings.active is not empty
    assert bool(settings.no_effect) is empty


# The share of a noise schedule --------------------------------------------------------------------------------------


@given(st.floats(0.03, 14.6))
def test_the_share_is_that_of_the_timesteps_as_diffusers_finds_them(sigma: float) -> None:
    log_sigmas = np.log(np.array(SD.sigmas))
    timestep = float(EULER._sigma_to_t(np.array(sigma), log_sigmas))
    assert SD.share(sigma) == pytest.approx(1 - timestep / 999, abs=1e-9)
    assert SD.share_at(timestep) == pytest.approx(SD.share(sigma), abs=1e-9)


@given(st.floats(0, 1))
def test_a_percentage_is_comfyuis(percent: float) -> None:
    """ModelSamplingDiscrete.percent_to_sigma, written out: log σ at timestep 999 (1 - p)."""
    place = 999 * (1 - percent)
    low, high = math.log(SD.sigmas[math.floor(place)]), math.log(SD.sigmas[math.ceil(place)])
    sigma = math.exp(low + (place - math.floor(place)) * (high - low))
    assert SD.share(sigma) == pytest.approx(percent, abs=1e-9)
    assert SD.of(f"{100 * percent}%") == pytest.approx(percent)


def test_the_ends_of_schedules() -> None:
    assert SD.sigmas == tuple(sorted(SD.sigmas))
    assert (SD.share(SD.sigmas[-1]), SD.share(1e6), SD.share(SD.sigmas[0]), SD.share(0.0)) == (0, 0, 1, 1)
    assert [FLOW.share(sigma) for sigma in (1.0, 0.75, 0.0, 5.4, -1.0)] == [0, 0.25, 1, 0, 1]
    zero_snr = NoiseSchedule.of_alphas([0.9, 0.5, 0.0])
    assert zero_snr.sigmas == (pytest.approx(1 / 3), 1.0, math.inf)
    assert [zero_snr.share(sigma) for sigma in (1.0, 4000.0, math.inf)] == [0.5, 0.5, 0]
    assert (SD.of("sigma 0"), SD.of(0.0), SD.of(1.0), FLOW.of("sigma 0.6")) == (1, 0, 1, pytest.approx(0.4))


def guided(window: Window, noise: NoiseSchedule, sigmas: list[float]) -> list[int]:
    shares = [noise.share(sigma) for sigma in sigmas]
    return [call for call, share in enumerate(shares) if window.scale(1.0, "constant", noise, share, len(sigmas))]


@pytest.mark.parametrize("end", ["sigma 0.5", "sigma 2.2", "sigma 0", 1.0, "100%"])
@pytest.mark.parametrize("start", ["sigma 14", "sigma 3.1", "sigma 200", 0.0, "0%"])
def test_the_guided_steps_are_those_between_two_levels(start: Any, end: Any) -> None:
    EULER.set_timesteps(20)
    sigmas = EULER.sigmas[:-1].tolist()
    first, last = (float(each.split()[1]) if str(each)[0] == "s" else None for each in (start, end))
    expected = [
        call
        for call, sigma in enumerate(sigmas)
        if (first is None or sigma <= first) and (last is None or sigma > last)
    ]
    assert guided(Window(start, end), SD, sigmas) == expected


def test_a_level_that_a_step_has_is_the_first_one_and_isnt_the_last() -> None:
    sigmas = torch.linspace(1, 0, 6)[:-1].tolist()  # 0.8 and the like aren't exact in float32
    for noise in (FLOW, NoiseSchedule((0.1, 0.2, 0.4, 0.6, 0.8, 1.0))):
        assert guided(Window("sigma 0.8", "sigma 0.4"), noise, sigmas) == [1, 2]
    assert guided(Window("20%", "60%"), FLOW, sigmas) == [1, 2]
    assert guided(Window("sigma 5.4", "sigma 3"), FLOW, sigmas) == []


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_go_by_the_share_in_place_of_the_steps(schedule: str) -> None:
    """In a flow-matching model whose σ falls evenly both are the same."""
    for call in range(10):
        found = Window("20%", "80%").scale(3.0, schedule, FLOW, FLOW.share(1 - call / 10), 10)
        assert found == pytest.approx(scheduled_scale(3.0, schedule, call, 10, 0.2, 0.8), abs=1e-4)
    assert Window("sigma 0.8", "sigma 0.4").scale(3.0, "linear", FLOW, 0.3, 10) == pytest.approx(2.25, abs=1e-4)


@pytest.mark.parametrize(("moment", "text"), [(0.5, "0.5"), (1.0, "1"), (0.0, "0"), (2 / 3, None), (1 / 3, None)])
def test_the_page_shows_a_fraction_that_is_read_as_the_same(moment: float, text: str | None) -> None:
    """Two thirds come out of the axis Start, 0-1 [4], and its infotext; six digits of them leave out a step of 30."""
    shown = infotext.Pasted({"enabled": True, "start": moment}, []).value("start")
    assert text in (None, shown)
    assert AsagSettings.from_mapping({"start": shown}).start == moment


# What carries it ------------------------------------------------------------------------------------------------------


def test_infotext_presets_arguments_and_axes_carry_noise() -> None:
    settings = AsagSettings(enabled=True, start="sigma 5.4", end="62.5%")
    text = infotext.write(settings)
    assert text == "scale 1.5; start sigma 5.4; end 62.5%"
    assert infotext.read({infotext.KEY: text}) == settings
    assert infotext.read({infotext.KEY: "start σ 5.4; end 62.5 %; scale 1.5"}) == settings
    preset = AsagSettings(start="sigma 5.4", end="62.5%")
    assert read_shared(write_shared("Mine", preset)) == ("Mine", preset)
    assert api.read_args([{"enabled": True, "start": "σ 5.4", "end": "62.5%"}]) == settings
    assert api.schema()["properties"]["start"]["type"] == ["number", "string"]
    plot = PlotDouble()
    xyz.add_axes(plot)
    kinds = {axis.label: axis.type for axis in plot.axis_options}
    assert [kinds[f"[ASAG] {label}"] for label in ("Start", "Start (noise)", "End", "End (noise)")] == [float, str] * 2
    axis = next(axis for axis in plot.axis_options if axis.label == "[ASAG] End (noise)")
    axis.confirm(None, ["60%", "sigma 2"])
