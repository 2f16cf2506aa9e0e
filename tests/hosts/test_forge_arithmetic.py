"""Forge's adapter in whole requests, against the definition: on a real UNet in a double of the host."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ldm.modules import attention
from torch import Tensor, nn

from asag.hosts.generation import RUN, arm
from asag.settings import AsagSettings
from tests.hosts.forge_double import Host, KModel, Options, Patcher, calc_cond_uncond_batch
from tests.hosts.guided import AND, FIRST, HIRES, LATER, PLAIN, ConvolvedRows, assert_steps, expected, guided
from tests.hosts.reference import ALPHAS, Prompts, blurred_map, identity_map, real_unet
from tests.installed import installed
from tests.support import snapshot

CONSTANT = [[2.0] * 2]


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return real_unet()


@pytest.fixture
def host(unet: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(attention, "_ATTN_PRECISION", "that of its input")
    host = Host(unet, PLAIN)
    with installed(host.modules()):
        from asag.hosts.forge import Forge

        host.adapter = Forge()
        patcher = host.objects.unet
        yield host
        assert host.objects.unet is patcher
        assert "sampler_post_cfg_function" not in patcher.model_options


@pytest.mark.parametrize("reuse", [True, False], ids=["shared", "whole"])
@pytest.mark.parametrize("batched", [True, False], ids=["one call", "calls"])
@pytest.mark.parametrize(
    ("prompts", "cfg"), [(PLAIN, 1.0), (PLAIN, 7.0), (AND, 7.0)], ids=["plain, no CFG", "plain", "AND"]
)
def test_steps_are_those_of_the_definition(
    host: Host, prompts: list[Prompts], cfg: float, batched: bool, reuse: bool
) -> None:
    host.prompts = prompts
    assert_steps(host, guided(host, Options(cfg, batched), reuse=reuse), CONSTANT)


@pytest.mark.parametrize("cfg", [1.0, 7.0])
@pytest.mark.parametrize(
    "settings", [{"contrast": 0.0}, {"contrast": 0.4}, {"rescale": 0.7}, {"contrast": 0.4, "rescale": 1.0}]
)
def test_what_is_done_to_the_push(host: Host, cfg: float, settings: dict[str, Any]) -> None:
    assert_steps(host, guided(host, Options(cfg), **settings), CONSTANT, **settings)


def test_contrast_of_parts_of_prompts(host: Host) -> None:
    host.prompts = AND
    assert_steps(host, guided(host, Options(), contrast=0.0), CONSTANT, contrast=0.0)


@pytest.mark.parametrize(
    ("settings", "scales"),
    [
        ({"start": 0.25, "end": 0.75}, [0, 2, 2, 0]),
        ({"schedule": "cosine"}, [2, 1 + math.sqrt(0.5), 1, 1 - math.sqrt(0.5)]),
    ],
)
def test_schedules_and_the_window(host: Host, settings: dict[str, Any], scales: list[float]) -> None:
    options = Options(passes=[FIRST + FIRST], timesteps=(801, 601, 401, 201))
    assert_steps(host, guided(host, options, **settings), [scales])


def test_the_hires_pass_has_a_scale_and_blocks_of_its_own(host: Host) -> None:
    found = guided(host, Options(passes=[FIRST, HIRES]), hires_scale=3.0, hires_blocks="out.0,in.1")
    assert_steps(host, found, [[2.0] * 2, [3.0] * 2], blocks=("mid", "out.0,in.1"))


@pytest.mark.parametrize("unit", ["push", "cfg"])
def test_the_hires_pass_begins_its_averages_anew(host: Host, unit: str) -> None:
    found = guided(host, Options(passes=[FIRST, HIRES]), unit=unit)
    assert_steps(host, found, CONSTANT * 2, unit=unit)


@pytest.mark.parametrize("batched", [True, False], ids=["one call", "calls"])
@pytest.mark.parametrize("flow", [False, True], ids=["noise", "flow"])
@pytest.mark.parametrize("prompts", [PLAIN, AND], ids=["plain", "AND"])
def test_unit_cfg_goes_by_the_size_of_cfgs_own_push(
    host: Host, prompts: list[Prompts], flow: bool, batched: bool
) -> None:
    """The same in a model of noise and in the same model as one of flow matching."""
    host.prompts = prompts
    assert_steps(host, guided(host, Options(4.0, batched, flow=flow), unit="cfg"), CONSTANT, unit="cfg")
    assert host.comments == []


def test_unit_cfg_is_the_same_for_noise_and_for_flow(host: Host) -> None:
    noise, flow = (guided(host, Options(flow=flow), unit="cfg") for flow in (False, True))
    for one, other in zip(noise, flow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_unit_cfg_beside_contrast_and_rescale(host: Host) -> None:
    more = {"unit": "cfg", "contrast": 0.4, "rescale": 0.7}
    assert_steps(host, guided(host, Options(), **more), CONSTANT, **more)


def test_the_scale_of_cfg_is_that_of_the_hosts_step(host: Host) -> None:
    """Neo's refiner may have another than the request."""
    first = host._sampling_function

    def sampling(*args: Any) -> Any:
        host.p.cfg_scale = 1.0
        return first(*args)

    host._sampling_function = sampling
    assert_steps(host, guided(host, Options(4.0), unit="cfg"), CONSTANT, unit="cfg")
    assert host.comments == []


@pytest.mark.parametrize("always_uncond", [False, True])
def test_without_cfg_unit_cfg_is_a_stated_push_and_says_so(host: Host, always_uncond: bool) -> None:
    found = guided(host, Options(1.0, always_uncond=always_uncond), unit="cfg")
    assert_steps(host, found, CONSTANT, unit="cfg")
    (told,) = host.comments
    assert told.startswith("ASAG used unit push at 0.1 times the scale in 2 of 2 guided steps: unit cfg needs CFG")


@pytest.mark.parametrize("settings", [{"unit": "cfg"}, {"figures": True}])
def test_cfgs_own_push_is_what_the_host_made_before_other_extensions(host: Host, settings: dict[str, Any]) -> None:
    def another(args: dict[str, Any]) -> Tensor:
        return args["denoised"] + 3.0

    host.objects.unet.model_options["sampler_post_cfg_function"] = [another]
    found = guided(host, Options(), **settings)
    for result, timestep in zip(found, (801, 401), strict=True):
        sigma = ((1 - ALPHAS[timestep]) / ALPHAS[timestep]).sqrt()
        result += 3.0 / sigma
    settings.pop("figures", None)
    assert_steps(host, found, CONSTANT, **settings)
    del host.objects.unet.model_options["sampler_post_cfg_function"]


@torch.no_grad()
def test_the_trace_has_the_push_beside_cfgs_own(host: Host) -> None:
    host.options = Options(passes=[FIRST])
    trace = arm(host.adapter, host.p, AsagSettings(enabled=True, scale=0.5, unit="cfg", figures=True), unguided=list)
    host.p.sample()
    first, _ = trace.steps
    assert first.pushes == pytest.approx([0.5 * size for size in first.cfg_sizes], rel=1e-10)
    _, unconditional, plain = expected(host, [[0.0] * 2])
    own = (plain[0] - unconditional[0]) * 6 / 7  # (w - 1) (ε(x, c) - ε(x)) for w = 7
    assert first.cfg_sizes == pytest.approx(own.square().mean(dim=(1, 2, 3)).sqrt().tolist(), rel=1e-10)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_cfg_plus_plus_renoises_with_the_shifted_unconditional_noise(host: Host, rescale: float) -> None:
    guided(host, Options(), rescale=rescale)
    _, unconditional, _ = expected(host, CONSTANT)
    for result, wanted in zip(host.unconditional, unconditional, strict=True):
        torch.testing.assert_close(result, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("other", "every"), [(False, 4), (True, 1)], ids=["same weights", "another model"])
def test_another_patcher_in_the_middle_of_a_run_is_guided_too(host: Host, other: bool, every: int) -> None:
    """A refiner brings one. A push is used again in the model that it is of, and in no other."""
    before, model, first = host.objects.unet, host.model, host._sampling_function

    def sampling(denoiser: Any, *args: Any) -> Any:
        if denoiser.step == 1:
            host.model = KModel(host.unet) if other else model
            host.objects.unet = Patcher(host.model)
        found = first(denoiser, *args)
        host.model = model
        return found

    host._sampling_function = sampling
    found = guided(host, Options(), every=4)
    host.objects.unet = before
    assert_steps(host, found, CONSTANT, every=every)


def test_a_push_isnt_used_again_after_a_refiner_put_its_weights_into_the_same_network(host: Host) -> None:
    """Neo's setting Reload "state_dict" Only: the host notes the refiner's name then, and brings no other model."""
    first = host._sampling_function

    def sampling(denoiser: Any, *args: Any) -> Any:
        if denoiser.step == 1:
            host.p.extra_generation_params["Refiner"] = "the low noise model"
        return first(denoiser, *args)

    host._sampling_function = sampling
    assert_steps(host, guided(host, Options(), every=4), CONSTANT, every=1)


@pytest.mark.parametrize("reuse", [True, False], ids=["shared", "whole"])
def test_a_pass_that_another_makes_after_the_hosts_own_is_free_of_asag(host: Host, reuse: bool) -> None:
    """As Forge's own perturbed-attention guidance does, between the host's pass and ours."""
    clean, inside = snapshot(host.network()), []

    def another(args: dict[str, Any]) -> Tensor:
        inside.append(snapshot(host.network()))
        calc_cond_uncond_batch(args["model"], args["cond"], None, args["input"], args["sigma"], args["model_options"])
        return args["denoised"]

    host.objects.unet.model_options["sampler_post_cfg_function"] = [another]
    assert_steps(host, guided(host, Options(), reuse=reuse), CONSTANT)
    assert inside == [clean] * 2
    del host.objects.unet.model_options["sampler_post_cfg_function"]


def test_what_guides_needs_no_other_of_its_functions(host: Host) -> None:
    host.dropped = 1
    assert_steps(host, guided(host, Options()), CONSTANT)


def test_method_pag_is_perturbed_attention_guidance(host: Host) -> None:
    assert_steps(host, guided(host, Options(), method="pag"), CONSTANT, attention_map=identity_map)


@pytest.mark.parametrize("reuse", [True, False], ids=["shared", "whole"])
def test_method_seg_blurs_over_the_pictures_height_and_width(host: Host, reuse: bool) -> None:
    found = guided(host, Options(), method="seg", blur=0.4, reuse=reuse)
    assert_steps(host, found, CONSTANT, attention_map=blurred_map)


@torch.no_grad()
@pytest.mark.parametrize(("window", "count"), [({}, 4), ({"start": 0.5}, 2), ({"start": 0.25, "end": 0.5}, 1)])
def test_guided_steps_are_counted(host: Host, window: dict[str, float], count: int) -> None:
    host.options = Options(passes=[FIRST + FIRST], timesteps=(801, 601, 401, 201))
    unguided: list[bool] = []
    arm(host.adapter, host.p, AsagSettings(enabled=True, **window), unguided=lambda: unguided.append(True))
    run = getattr(host.p, RUN)
    host.p.sample()
    assert (run.guided_calls, run.announced, run.missed_calls) == (count, 4, 0)
    assert (run.reuse.shared, run.reuse.whole) == (count, 0)
    assert not unguided
    assert host.comments == []


def test_windows_of_frames_are_the_hosts(host: Host) -> None:
    """Neo makes long videos in windows: the double's handler takes the frames one by one, as images here."""
    taken: list[Tensor] = []

    class Handler:
        def should_use_context(self, x: Tensor) -> bool:
            return True

        def execute(self, function: Any, model: Any, conds: list[Any], x: Tensor, *rest: Any) -> list[Tensor]:
            taken.append(x)
            return function(model, *conds, x, *rest)

    home = sys.modules["backend.sampling.sampling_function"]
    home.dynamic_args = SimpleNamespace(context_handler=Handler())
    assert_steps(host, guided(host, Options(), reuse=False), CONSTANT)
    assert [x.shape for x in taken] == [FIRST[0].shape] * 2
    home.dynamic_args = SimpleNamespace(context_handler=None)
    assert_steps(host, guided(host, Options(), reuse=False), CONSTANT)
    assert len(taken) == 2
    del home.dynamic_args


def test_the_model_is_patched_once_in_a_run(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    clones, clone = [], Patcher.clone

    def counted(patcher: Patcher) -> Patcher:
        clones.append(patcher)
        return clone(patcher)

    monkeypatch.setattr(Patcher, "clone", counted)
    guided(host, Options(passes=[FIRST, HIRES]))
    assert len(clones) == 1


def test_a_reference_units_model_takes_whole_passes_and_the_steps_are_the_same(host: Host) -> None:
    """Without a modifier that does anything."""
    host.objects.unet.model_options["conditioning_modifiers"] = [object()]
    assert_steps(host, guided(host, Options()), CONSTANT)
    del host.objects.unet.model_options["conditioning_modifiers"]
    assert host.comments == [
        "ASAG took a whole extra pass in 2 of 2 guided steps: one of ControlNet's reference units is on"
    ]


# `every` -----------------------------------------------------------------------------------------------------------

FOUR = {"passes": [LATER], "timesteps": (801, 601, 401, 201)}


@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize(
    "settings", [{}, {"contrast": 0.4}, {"rescale": 0.7}, {"unit": "push"}, {"unit": "cfg"}, {"reuse": False}], ids=str
)
def test_steps_between_use_the_last_push(host: Host, settings: dict[str, Any], every: int) -> None:
    host.prompts = PLAIN if "rescale" in settings else AND
    found = guided(host, Options(**FOUR), every=every, **settings)
    more = {name: value for name, value in settings.items() if name != "reuse"}
    assert_steps(host, found, [[2.0] * 4], every=every, **more)


def test_the_first_guided_step_of_a_window_and_of_a_pass_computes_its_push(host: Host) -> None:
    found = guided(host, Options(**FOUR), every=3, start=0.25)
    assert_steps(host, found, [[0, 2, 2, 2]], every=3)
    found = guided(host, Options(passes=[FIRST, FIRST]), every=4)
    assert_steps(host, found, CONSTANT * 2, every=4)


@pytest.mark.parametrize(("reuse", "rows"), [(True, [6, 4]), (False, [4, 2, 4])], ids=["shared", "whole"])
def test_a_step_that_uses_the_last_push_costs_nothing(host: Host, reuse: bool, rows: list[int]) -> None:
    """Rows in the last block of the middle: two images, each with and without its prompt, and the weakened ones."""
    with ConvolvedRows(host.network().middle_block[2].in_layers[2].weight) as found:
        guided(host, Options(), reuse=reuse, every=2)
    assert found.rows == rows
