"""One call of a denoiser, and a pipeline's calls counted, on doubles: against the definitions, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from asag.hosts.diffusers_call import (
    Alphas,
    Rescaling,
    Shift,
    argument,
    grey_of,
    picture_of,
    token_grid_of,
    velocity_of_grey,
    with_rows,
)
from asag.hosts.diffusers_pass import Passes
from asag.models.base import UnsupportedModel
from asag.models.diffusers_mmdit import FluxTransformer
from asag.models.diffusers_unet import DiffusersUnet


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_an_argument_comes_by_position_or_by_one_of_its_names() -> None:
    given = ("x", "t"), {"context": "c", "other": None}
    assert [argument(*given, 0, "context"), argument(*given, 1, "t")] == ["x", "t"]
    assert argument(*given, 2, "hidden_states", "context") == "c"
    assert argument(*given, 2, "other", "context") is None
    assert argument(*given, 2, "missing") is None


def packed_ids(height: int, width: int, reference: int = 0) -> Tensor:
    """The position ids of Flux's image, and of a reference image of `reference` squared (Kontext)."""
    parts = []
    for mark, rows, columns in ((0, height, width), (1, reference, reference)):
        places = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        parts.append(torch.stack([torch.full_like(places[0], mark), *places], dim=-1).flatten(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize(
    ("args", "named", "size"),
    [
        ((torch.zeros(2, 4, 6, 8),), {}, (6, 8)),
        ((), {"sample": torch.zeros(2, 4, 6, 8)}, (6, 8)),
        ((), {"hidden_states": torch.zeros(2, 4, 3, 5)}, (3, 5)),
        ((torch.zeros(1, 24, 16),), {"img_ids": packed_ids(4, 6)}, (4, 6)),
        ((torch.zeros(1, 24, 16),), {"img_ids": packed_ids(4, 6)[None]}, (4, 6)),
        ((torch.zeros(1, 124, 16),), {"img_ids": packed_ids(4, 6, reference=10)}, (4, 6)),
        ((torch.zeros(1, 24, 16), 1, 2, 3, packed_ids(2, 12)), {}, (2, 12)),
        ((torch.zeros(1, 24, 16),), {}, None),
    ],
)
def test_the_latents_size_is_theirs_or_that_of_the_position_ids(args: Any, named: Any, size: Any) -> None:
    grid = token_grid_of(args, named)
    assert (grid.latent_size, grid.frames, grid.text_tokens) == (size, 1, 0)


@dataclass
class Output:
    """The double of diffusers' output objects."""

    sample: Tensor


def test_an_output_keeps_its_kind() -> None:
    rows = normal(2)
    assert with_rows((normal(1), "more"), rows) == (rows, "more")
    found = with_rows(Output(normal(1)), rows)
    assert type(found) is Output
    assert found.sample is rows


def test_every_row_of_an_image_is_shifted_alike() -> None:
    before, added = normal(4, 3, 2, 2, seed=1), normal(2, 3, 2, 2, seed=2)
    rows = before.clone()
    Shift(added).apply(rows)
    torch.testing.assert_close(rows, before + torch.cat([added, added]), rtol=0, atol=1e-15)
    factor, zero = normal(2, 1, 1, 1, seed=3), normal(2, 3, 2, 2, seed=4)
    rows = before.clone()
    Shift(added, Rescaling(factor, zero)).apply(rows)
    for row, image in enumerate((0, 1, 0, 1)):
        expected = zero[image] + factor[image] * (before[row] + added[image] - zero[image])
        torch.testing.assert_close(rows[row], expected, rtol=1e-12, atol=1e-12)


# What a denoiser predicts for a picture of zeros ---------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_a_flow_predicts_x_over_sigma_for_grey(packed: bool) -> None:
    """x = (1 - σ) x₀ + σ n and v = n - x₀: with x₀ = 0, v = x / σ."""
    shape = (2, 24, 16) if packed else (2, 4, 3, 5)
    noise, sigma = normal(*shape), torch.tensor([0.25, 0.75], dtype=torch.float64)
    x = sigma.view(-1, *[1] * (len(shape) - 1)) * noise
    mask = normal(2, 24, 3) if packed else normal(2, 3, 3, 5)
    sample = torch.cat([x, mask], dim=-1 if packed else 1)  # inpainting's mask follows
    for args, named in (
        ((sample, None, None, 1000 * sigma), {}),
        ((), {"hidden_states": sample, "timestep": 1000 * sigma}),
    ):
        torch.testing.assert_close(velocity_of_grey(args, named, noise, 1000), noise, rtol=1e-12, atol=1e-12)


ALPHAS = torch.linspace(0.999, 0.01, 10, dtype=torch.float64)


def scheduler(kind: str | None, alphas: Tensor | None = ALPHAS) -> Any:
    found = SimpleNamespace(config={} if kind is None else {"prediction_type": kind})
    if alphas is not None:
        found.alphas_cumprod = alphas
    return found


def diffused(kind: str, clean: Tensor, noise: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """x, and what a perfect UNet predicts: x = √ᾱ x₀ + √(1-ᾱ) ε, v = √ᾱ ε - √(1-ᾱ) x₀ (arXiv 2202.00512)."""
    kept = kept.view(-1, 1, 1, 1)
    velocity = kept.sqrt() * noise - (1 - kept).sqrt() * clean
    predicted = {"epsilon": noise, "v_prediction": velocity, "sample": clean}[kind]
    return kept.sqrt() * clean + (1 - kept).sqrt() * noise, predicted


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("timestep", [3, 3.4, -2, 99, torch.tensor([1, 8])])
def test_a_unets_prediction_for_grey_and_the_picture_in_a_prediction(kind: str, timestep: Any) -> None:
    places = {3: [3, 3], 3.4: [3, 3], -2: [0, 0], 99: [9, 9]}
    kept = ALPHAS[[1, 8] if isinstance(timestep, Tensor) else places[timestep]]
    grey, noise, clean = torch.zeros(2, 4, 3, 5, dtype=torch.float64), normal(2, 4, 3, 5), normal(2, 4, 3, 5, seed=1)
    x, predicted = diffused(kind, grey, noise, kept)
    named = {"sample": torch.cat([x, normal(2, 5, 3, 5)], dim=1), "timestep": timestep}
    torch.testing.assert_close(
        grey_of(scheduler(kind), Alphas(), (), named, predicted, "rescale: above 0"), predicted, rtol=1e-10, atol=1e-10
    )
    x, predicted = diffused(kind, clean, noise, kept)
    found = picture_of(scheduler(kind), Alphas(), (x, timestep), {}, predicted)
    ratio = found / clean
    assert float(ratio.min()) > 0
    spread = (ratio.amax(dim=(1, 2, 3)) - ratio.amin(dim=(1, 2, 3))) / ratio.mean(dim=(1, 2, 3))
    assert float(spread.max()) < 1e-9


def test_without_a_prediction_type_it_is_the_noise_and_half_precision_is_raised() -> None:
    x, noise = diffused("epsilon", torch.zeros(1, 1, 1, 2, dtype=torch.float64), normal(1, 1, 1, 2), ALPHAS[:1])
    found = grey_of(scheduler(None), Alphas(), (x, 0), {}, noise, "rescale: above 0")
    torch.testing.assert_close(found, noise)
    half = grey_of(scheduler("epsilon"), Alphas(), (x.half(), 0), {}, noise.half(), "rescale: above 0")
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, (x.half().double() / (1 - ALPHAS[0]).sqrt()).float())


@pytest.mark.parametrize(("setting", "allowed"), [("contrast: below 1", 1), ("rescale: above 0", 0)])
@pytest.mark.parametrize("given", [scheduler("flow"), scheduler("epsilon", None)])
def test_a_scheduler_that_doesnt_tell_is_refused(given: Any, setting: str, allowed: int) -> None:
    with pytest.raises(
        UnsupportedModel, match=f"{setting} with SimpleNamespace .*; allowed: {allowed}, or a scheduler"
    ):
        grey_of(given, Alphas(), (normal(1, 1, 1, 1), 0), {}, normal(1, 1, 1, 1), setting)


# A pipeline's calls --------------------------------------------------------------------------------------------------


def pipe_of(timesteps: Any = None, **more: Any) -> Any:
    return SimpleNamespace(scheduler=SimpleNamespace(timesteps=timesteps), **more)


def test_steps_are_counted_anew_with_new_timesteps_or_after_the_last() -> None:
    pipe = pipe_of(torch.arange(3))
    passes = Passes(pipe, DiffusersUnet(), "paper")
    begun: list[None] = []
    passes.unit.begin_pass = lambda: begun.append(None)
    assert [passes.next_step() for _ in range(3)] == [(0, 3), (1, 3), (2, 3)]
    assert len(begun) == 1
    passes.rows, passes.shift = 4, Shift(normal(1))
    assert passes.next_step() == (0, 3)  # another picture, with the timesteps kept
    assert (passes.rows, passes.shift, len(begun)) == (0, None, 2)
    passes.next_step()
    pipe.scheduler.timesteps = torch.arange(2)
    assert passes.next_step() == (0, 2)  # one that was broken off before
    assert len(begun) == 3
    pipe.num_timesteps = 5  # more calls than timesteps
    assert [passes.next_step() for _ in range(5)] == [(1, 5), (2, 5), (3, 5), (4, 5), (0, 5)]


def test_the_conditional_rows_are_the_second_half_of_the_same_latents() -> None:
    half = normal(3, 4, 2, 2)
    both = torch.cat([half, half])
    assert Passes(pipe_of(do_classifier_free_guidance=True), DiffusersUnet(), "paper").conditional_rows(both) == slice(
        3, 6
    )
    assert Passes(pipe_of(do_classifier_free_guidance=False), DiffusersUnet(), "paper").conditional_rows(half) == slice(
        0, 3
    )
    assert Passes(pipe_of(do_classifier_free_guidance=True), FluxTransformer(), "paper").conditional_rows(
        half
    ) == slice(0, 3)


@pytest.mark.parametrize("guided", [True, None])
@pytest.mark.parametrize("rows", [3, 4])
def test_other_rows_are_refused(guided: bool | None, rows: int) -> None:
    pipe = pipe_of() if guided is None else pipe_of(do_classifier_free_guidance=True)
    with pytest.raises(UnsupportedModel, match=rf"SimpleNamespace calls its denoiser on {rows} rows that aren't"):
        Passes(pipe, DiffusersUnet(), "paper").conditional_rows(normal(rows, 4, 2, 2))


def test_rows_are_compared_once_for_each_picture_and_may_not_become_more() -> None:
    passes = Passes(pipe_of(do_classifier_free_guidance=True), DiffusersUnet(), "paper")
    half = normal(1, 4, 2, 2)
    passes.conditional_rows(torch.cat([half, half]))
    assert passes.conditional_rows(normal(2, 4, 2, 2)) == slice(1, 2)
    with pytest.raises(UnsupportedModel, match="on 4 rows"):
        passes.conditional_rows(torch.cat([half] * 4))


def test_flux_predicts_the_same_latents_again_for_its_negative_prompt() -> None:
    passes = Passes(pipe_of(), FluxTransformer(), "paper")
    sample, time = normal(1, 24, 16), torch.tensor([0.5])

    def repeats(sample: Tensor, time: Tensor, rescale: float = 0.0) -> bool:
        return passes.repeats_step((), {"hidden_states": sample, "timestep": time}, rescale)

    assert not repeats(sample, time)
    assert repeats(sample, time.clone())
    assert not repeats(sample, torch.tensor([0.25]))
    assert not repeats(sample.clone(), torch.tensor([0.25]))
    passes.shift = Shift(normal(1))
    assert not repeats(sample, time, 0.5)
    with pytest.raises(UnsupportedModel, match=r"rescale: 0\.5 with a negative prompt in SimpleNamespace; allowed: 0"):
        repeats(sample, time, 0.5)
    passes.shift = None  # a step outside the window
    assert repeats(sample, time, 0.5)
    unet = Passes(pipe_of(), DiffusersUnet(), "paper")
    assert not any(unet.repeats_step((sample, time), {}, 0.0) for _ in range(2))
    assert unet.repeats_step((sample, time), {"skip_layers": [7]}, 0.0)
    assert not unet.repeats_step((sample, time), {"skip_layers": None}, 0.0)


def test_position_ids_are_read_once() -> None:
    passes = Passes(pipe_of(), FluxTransformer(), "paper")
    sample, ids = normal(1, 24, 16), packed_ids(4, 6)
    assert passes.latent_size((sample,), {"img_ids": ids}) == (4, 6)
    ids[:] = packed_ids(2, 12)
    assert passes.latent_size((sample,), {"img_ids": ids}) == (4, 6)
    assert passes.latent_size((sample,), {"img_ids": ids.clone()}) == (2, 12)
    assert passes.latent_size((sample,), {}) is None
    unet = Passes(pipe_of(), DiffusersUnet(), "paper")
    assert unet.latent_size((normal(1, 4, 3, 5),), {"img_ids": ids}) == (3, 5)
