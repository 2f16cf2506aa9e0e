"""AUTOMATIC1111's adapter in whole requests, against the definition: on a real UNet in a double of the host."""

from __future__ import annotations

import copy
import math
import sys
from collections import deque
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from ldm.modules import attention
from torch import Tensor, nn

from asag.hosts.generation import RUN, arm
from asag.hosts.refused import Refused
from asag.lab.bench.fake_cuda import FakeCuda
from asag.settings import AsagSettings
from tests.hosts.a1111_double import CFGDenoiser, CompVisTimestepsDenoiser, Host, Options
from tests.hosts.guided import FIRST, HIRES, LATER, MIXED, PLAIN, ConvolvedRows, assert_steps, expected, guided
from tests.hosts.reference import (
    ALPHAS,
    LAYERS,
    Prompts,
    blurred_map,
    identity_map,
    most_aligned_heads,
    part_of,
    real_unet,
    sinkhorn_map,
)
from tests.installed import installed
from tests.support import needs_fake_cuda, snapshot


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return real_unet()


@pytest.fixture
def host(unet: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(attention, "_ATTN_PRECISION", "that of its input")
    host = Host(unet, PLAIN)
    with installed(host.modules()):
        from asag.hosts.a1111 import A1111

        host.adapter = A1111()
        yield host


CONSTANT = [[2.0] * 2]
DENOISER_NAMES = ("sigmas", "noise", "velocity")


@pytest.mark.parametrize("reuse", [True, False], ids=["shared", "whole"])
@pytest.mark.parametrize("batched", [True, False], ids=["one call", "calls"])
@pytest.mark.parametrize(("denoiser", "cfg"), [("sigmas", 1.0), ("sigmas", 7.0), ("noise", 7.0), ("velocity", 4.0)])
@pytest.mark.parametrize("prompts", [PLAIN, MIXED], ids=["plain", "AND"])
def test_steps_are_those_of_the_definition(
    host: Host, prompts: list[Prompts], denoiser: str, cfg: float, batched: bool, reuse: bool
) -> None:
    host.prompts = prompts
    assert_steps(host, guided(host, Options(denoiser, cfg, batched=batched), reuse=reuse), CONSTANT)


@pytest.mark.parametrize("settings", [{"contrast": 0.0}, {"contrast": 0.4}, {"rescale": 0.7}, {"unit": "push"}])
@pytest.mark.parametrize("denoiser", DENOISER_NAMES)
def test_what_is_done_to_the_push(host: Host, denoiser: str, settings: dict[str, Any]) -> None:
    assert_steps(host, guided(host, Options(denoiser), **settings), CONSTANT, **settings)


@pytest.mark.parametrize(
    ("settings", "scales"),
    [
        ({"start": 0.25, "end": 0.75}, [0, 2, 2, 0]),
        ({"schedule": "linear"}, [2, 1.5, 1, 0.5]),
        ({"schedule": "linear", "start": 0.5}, [0, 0, 2, 1]),
        ({"schedule": "cosine"}, [2, 1 + math.sqrt(0.5), 1, 1 - math.sqrt(0.5)]),
        ({"schedule": "bell"}, [2 * math.sin(math.pi * place) ** 2 for place in (0.125, 0.375, 0.625, 0.875)]),
    ],
)
def test_schedules_and_the_window(host: Host, settings: dict[str, Any], scales: list[float]) -> None:
    options = Options(passes=[FIRST + FIRST], timesteps=(801, 601, 401, 201))
    assert_steps(host, guided(host, options, **settings), [scales])


def test_the_hires_pass_has_a_scale_and_blocks_of_its_own(host: Host) -> None:
    found = guided(host, Options(passes=[FIRST, HIRES]), hires_scale=3.0, hires_blocks="out.0,in.1")
    assert_steps(host, found, [[2.0] * 2, [3.0] * 2], blocks=("mid", "out.0,in.1"))


@pytest.mark.parametrize(("hires", "scales"), [("first", [[2.0] * 2, [0.0] * 2]), ("hires", [[0.0] * 2, [2.0] * 2])])
def test_one_pass_alone(host: Host, hires: str, scales: list[list[float]]) -> None:
    assert_steps(host, guided(host, Options(passes=[FIRST, HIRES]), hires=hires), scales)


@pytest.mark.parametrize("unit", ["push", "cfg"])
def test_the_hires_pass_begins_its_averages_anew(host: Host, unit: str) -> None:
    found = guided(host, Options(passes=[FIRST, HIRES]), unit=unit)
    assert_steps(host, found, CONSTANT * 2, unit=unit)


@pytest.mark.parametrize("batched", [True, False], ids=["one call", "calls"])
@pytest.mark.parametrize("denoiser", DENOISER_NAMES)
@pytest.mark.parametrize("prompts", [PLAIN, MIXED], ids=["plain", "AND"])
def test_unit_cfg_goes_by_the_size_of_cfgs_own_push(
    host: Host, prompts: list[Prompts], denoiser: str, batched: bool
) -> None:
    """In pictures, in noise and in velocities, of each image, with the parts of a prompt and their weights."""
    host.prompts = prompts
    found = guided(host, Options(denoiser, 4.0, batched=batched), unit="cfg")
    assert_steps(host, found, CONSTANT, unit="cfg")
    assert host.comments == []


def test_unit_cfg_is_the_same_for_pictures_and_for_noise(host: Host) -> None:
    pictures, noise = (guided(host, Options(denoiser), unit="cfg") for denoiser in ("sigmas", "noise"))
    for one, other in zip(pictures, noise, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_unit_cfg_beside_contrast_and_rescale(host: Host) -> None:
    more = {"unit": "cfg", "contrast": 0.4, "rescale": 0.7}
    assert_steps(host, guided(host, Options(), **more), CONSTANT, **more)


def test_unit_cfg_in_a_sampler_of_cfg_plus_plus(host: Host) -> None:
    """Its scale is below 1, so that its own push goes the other way; the size is what counts."""
    found = guided(host, Options("noise", cfg_plus_plus=True), unit="cfg")
    assert_steps(host, found, CONSTANT, unit="cfg")
    _, unconditional, _ = expected(host, CONSTANT, unit="cfg")
    for result, wanted in zip(host.unconditional, unconditional, strict=True):
        torch.testing.assert_close(result, wanted, rtol=0, atol=1e-9)


def test_unit_cfg_in_a_sampler_of_two_calls_a_step_averages_over_calls(host: Host) -> None:
    options = Options(passes=[FIRST + FIRST], timesteps=(801, 601, 601, 401))
    assert_steps(host, guided(host, options, unit="cfg"), [[2.0] * 4], unit="cfg")


def test_a_step_that_leaves_cfg_out_goes_by_those_before_it(host: Host) -> None:
    found = guided(host, Options(without_uncond=(1,)), unit="cfg")
    assert_steps(host, found, CONSTANT, unit="cfg")
    assert host.comments == []


NO_CFG = (
    "ASAG used unit push at 0.1 times the scale in {} of 2 guided steps: unit cfg needs CFG, and they had none (CFG "
    "scale 1, a distilled model, or CFG left out)"
)


@pytest.mark.parametrize(("cfg", "without", "count"), [(1.0, (), 2), (7.0, (0,), 1)])
def test_without_cfg_unit_cfg_is_a_stated_push_and_says_so(
    host: Host, cfg: float, without: tuple[int, ...], count: int
) -> None:
    found = guided(host, Options(cfg=cfg, without_uncond=without), unit="cfg")
    assert_steps(host, found, CONSTANT, unit="cfg")
    assert host.comments == [NO_CFG.format(count)]
    assert host.p.extra_generation_params["ASAG note"] == NO_CFG.format(count)


def test_cfg_that_changes_nothing_is_told(host: Host) -> None:
    host.prompts = [Prompts([each.negative], [1.0], each.negative) for each in PLAIN]
    guided(host, Options(batched=False), unit="cfg")
    assert host.comments == [
        "ASAG changed almost nothing: in unit cfg ASAG follows CFG, and CFG changed almost nothing (are both "
        "prompts the same?)"
    ]


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_cfg_plus_plus_renoises_with_the_shifted_unconditional_noise(host: Host, rescale: float) -> None:
    found = guided(host, Options("noise", cfg_plus_plus=True), rescale=rescale)
    assert_steps(host, found, CONSTANT, rescale=rescale)
    _, unconditional, _ = expected(host, CONSTANT)
    for result, wanted in zip(host.unconditional, unconditional, strict=True):
        torch.testing.assert_close(result, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("prompts", [PLAIN, MIXED], ids=["plain", "AND"])
def test_a_preview_of_the_prompt_shows_the_push(host: Host, prompts: list[Prompts]) -> None:
    """So does what an interrupted picture is made of."""
    host.prompts, options = prompts, Options("noise", passes=[FIRST])
    host.options = options
    with torch.no_grad():
        host.sample()
    without = list(host.previews)
    guided(host, options)
    wanted, _, plain = expected(host, CONSTANT)
    assert len(host.previews) == len(without) == len(wanted)
    for preview, before, result, unguided in zip(host.previews, without, wanted, plain, strict=True):
        torch.testing.assert_close(preview - before, result - unguided, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("denoiser", "rescale"), [("sigmas", 0.0), ("sigmas", 0.7), ("noise", 0.7)])
def test_steps_without_a_negative_prompt(host: Host, denoiser: str, rescale: float) -> None:
    found = guided(host, Options(denoiser, without_uncond=(1,)), rescale=rescale)
    assert_steps(host, found, CONSTANT, rescale=rescale)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("denoiser", ["sigmas", "noise"])
def test_a_model_that_edits_a_picture_has_a_row_more_of_each_image(host: Host, denoiser: str, rescale: float) -> None:
    """In the double its picture says nothing, so that the definition is the same."""
    found = guided(host, Options(denoiser, edit=True), rescale=rescale)
    assert_steps(host, found, CONSTANT, rescale=rescale)


def test_rescale_is_the_same_for_pictures_and_for_noise(host: Host) -> None:
    pictures, noise = (guided(host, Options(denoiser), rescale=1.0) for denoiser in ("sigmas", "noise"))
    for one, other in zip(pictures, noise, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_rescale_knows_the_hosts_own_factor_on_cfg(host: Host) -> None:
    """DDIM CFG++ has one; nothing keeps others from it."""
    found = guided(host, Options("sigmas", cfg_plus_plus=True), rescale=0.7)
    assert_steps(host, found, CONSTANT, rescale=0.7)


def test_an_inpainting_is_rescaled_before_its_mask_is_blended_in(host: Host) -> None:
    mask = torch.ones(4, 6, dtype=torch.float64)
    mask[:, 3:] = 0
    whole, masked = (guided(host, Options(mask=each), rescale=0.7) for each in (None, mask))
    for x, timestep, one, other in zip(FIRST, Options().timesteps, whole, masked, strict=True):
        pictures = [x - (1 - ALPHAS[timestep]).sqrt() * noise for noise in (one, other)]
        torch.testing.assert_close(pictures[0] * mask, pictures[1])


def test_other_methods_take_the_same_way(host: Host) -> None:
    assert_steps(host, guided(host, Options(), method="pag"), CONSTANT, attention_map=identity_map)


def test_a_reference_units_model_takes_whole_passes_and_the_steps_are_the_same(host: Host) -> None:
    """Without a bank of its own the double's reference changes nothing."""
    network = SimpleNamespace(attn_module_list=[object()], original_forward=host.unet.forward)
    script = SimpleNamespace(latest_network=network, title=lambda: "ControlNet")
    host.p.scripts = SimpleNamespace(alwayson_scripts=[script])
    assert_steps(host, guided(host, Options()), CONSTANT)
    assert host.comments == [
        "ASAG took a whole extra pass in 2 of 2 guided steps: one of ControlNet's reference units is on"
    ]


def test_a_reference_unit_shows_its_reference_unweakened(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The double shows it in each call of the model, and what comes out is what it kept."""
    network = SimpleNamespace(attn_module_list=[object()], original_forward=host.unet.forward)
    # Not a list: what the model's code remembers in one is put back after the perturbed pass.
    reference, kept = FIRST[0][:1], deque[Tensor]()

    def forward(x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        kept.append(network.original_forward(reference, timesteps[:1], context=context[:1]))
        out: Tensor = type(host.unet).forward(host.unet, x, timesteps, context=context)
        return out

    monkeypatch.setattr(host.unet, "forward", forward)
    script = SimpleNamespace(latest_network=network, title=lambda: "ControlNet")
    host.p.scripts = SimpleNamespace(alwayson_scripts=[script])
    guided(host, Options())
    first, first_perturbed, second, second_perturbed = kept
    for own, perturbed in ((first, first_perturbed), (second, second_perturbed)):
        torch.testing.assert_close(perturbed, own, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("denoiser", DENOISER_NAMES)
def test_a_picture_whose_rows_run_one_by_one(host: Host, denoiser: str) -> None:
    host.prompts = PLAIN[:1]
    options = Options(denoiser, batched=False, passes=[[x[:1] for x in FIRST]])
    assert_steps(host, guided(host, options, unit="push"), CONSTANT, unit="push")


def test_rows_that_another_extension_took_away_end_the_request(host: Host) -> None:
    def take(params: Any) -> None:
        params.denoiser.sampler.sampler_extra_args["cond"].batch.pop()

    host.callbacks.on_cfg_denoiser(take)
    before = snapshot(host.unet)
    with pytest.raises(
        Refused, match=r"^ASAG can't guide this picture: .*\(2 conditional rows of 4, weights \[\[1\.0\]\]\); "
    ) as refused:
        guided(host, Options())
    assert refused.value.status_code == 500
    assert snapshot(host.unet) == before


def test_after_an_error_the_model_runs_no_further_step(host: Host) -> None:
    calls: list[int] = []

    def take(params: Any) -> None:
        params.denoiser.sampler.sampler_extra_args["cond"].batch.pop()
        calls.append(params.denoiser.step)

    host.callbacks.on_cfg_denoiser(take)
    with ConvolvedRows(host.unet.out[2].weight) as convolved, pytest.raises(Refused):
        guided(host, Options(passes=[LATER], timesteps=(801, 601, 401, 201)))
    assert calls == [0, 1]
    assert len(convolved.rows) == 1


def test_an_accelerated_unet_and_an_unknown_one_are_refused(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["modules.sd_unet"], "current_unet", object())
    with pytest.raises(Refused, match="accelerated UNet") as refused:
        guided(host, Options())
    assert refused.value.status_code == 422
    monkeypatch.setattr(sys.modules["modules.sd_unet"], "current_unet", None)
    monkeypatch.setattr(host.sd_model.model, "diffusion_model", nn.Linear(2, 2))
    with pytest.raises(Refused, match="ASAG can't guide a Linear; allowed: ") as refused:
        guided(host, Options())
    assert refused.value.status_code == 422


def test_rows_of_a_text_are_counted_for_sdxl_too(host: Host) -> None:
    rows_of = sys.modules["asag.hosts.a1111_model"].rows_of
    assert rows_of(torch.zeros(2, 77, 8)) == 2
    assert rows_of({"crossattn": torch.zeros(3, 77, 8), "vector": torch.zeros(5, 8)}) == 3


@pytest.mark.parametrize("enabled", [True, False])
def test_tiles_of_hypertile_come_in_place_of_images(host: Host, monkeypatch: pytest.MonkeyPatch, enabled: bool) -> None:
    """The double of hypertile's wrapper: each row of tokens is an image of its own."""
    tiles: list[Any] = []

    def self_attn_forward(params: Any) -> Any:
        def forward(x: torch.Tensor, **others: Any) -> torch.Tensor:
            tiles.append(params)
            return params.forward(x.unflatten(1, (4, 6)).flatten(0, 1)).unflatten(0, (-1, 4)).flatten(1, 2)

        return forward

    hypertile = ModuleType("hypertile")
    hypertile.self_attn_forward = self_attn_forward
    monkeypatch.setitem(sys.modules, "hypertile", hypertile)
    params = SimpleNamespace(enabled=enabled, forward="the host's")
    middle = host.unet.get_submodule(LAYERS["mid"])
    monkeypatch.setattr(middle, "__webui_hypertile_params", params, raising=False)

    def block_map(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(*query.shape[:2], 24, 24, dtype=query.dtype)
        for row in range(4):
            some = slice(6 * row, 6 * row + 6)
            out[..., some, some] = sinkhorn_map(query[..., some, :], key[..., some, :])
        return out

    found = guided(host, Options())
    assert_steps(host, found, CONSTANT, attention_map=block_map if enabled else sinkhorn_map)
    assert bool(tiles) is enabled
    assert params.forward == "the host's"


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


@pytest.mark.parametrize("reuse", [True, False], ids=["shared", "whole"])
def test_method_seg_blurs_over_the_pictures_height_and_width(host: Host, reuse: bool) -> None:
    found = guided(host, Options(), method="seg", blur=0.4, reuse=reuse)
    assert_steps(host, found, CONSTANT, attention_map=blurred_map)


@needs_fake_cuda
def test_the_level_of_noise_is_looked_up_without_a_wait_for_the_device(host: Host) -> None:
    level = sys.modules["asag.hosts.a1111"]._noise_level
    with FakeCuda() as cuda:
        model = nn.Module()
        model.register_buffer("alphas_cumprod", torch.empty(1000, device="cuda"))
        call = SimpleNamespace(sigma=torch.empty(2, device="cuda"))
        step = SimpleNamespace(inner_model=CompVisTimestepsDenoiser(model), calls=[call])
        with cuda.recording() as record:
            assert level(step).shape == ()
    assert record.waits == []


# `every` -----------------------------------------------------------------------------------------------------------

FOUR = {"passes": [LATER], "timesteps": (801, 601, 401, 201)}


@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize(
    "settings", [{}, {"contrast": 0.4}, {"rescale": 0.7}, {"unit": "push"}, {"unit": "cfg"}, {"reuse": False}], ids=str
)
@pytest.mark.parametrize("denoiser", DENOISER_NAMES)
def test_steps_between_use_the_last_push(host: Host, denoiser: str, settings: dict[str, Any], every: int) -> None:
    host.prompts = MIXED
    found = guided(host, Options(denoiser, **FOUR), every=every, **settings)
    more = {name: value for name, value in settings.items() if name != "reuse"}
    assert_steps(host, found, [[2.0] * 4], every=every, **more)


def test_the_first_guided_step_of_a_window_and_of_a_pass_computes_its_push(host: Host) -> None:
    found = guided(host, Options(**FOUR), every=3, start=0.25, schedule="linear")
    assert_steps(host, found, [[0, 2, 4 / 3, 2 / 3]], every=3)
    found = guided(host, Options(passes=[FIRST, FIRST]), every=4)
    assert_steps(host, found, CONSTANT * 2, every=4)


def test_another_unet_computes_its_push(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refiner's, which the host puts in place before its callback; here with the same weights."""
    forward, before, other = CFGDenoiser.forward, host.unet, copy.deepcopy(host.unet)

    def refined(denoiser: CFGDenoiser, *args: Any) -> torch.Tensor:
        host.sd_model.model.diffusion_model = other if denoiser.step else before
        return forward(denoiser, *args)

    monkeypatch.setattr(CFGDenoiser, "forward", refined)
    found = guided(host, Options(), every=4)
    host.sd_model.model.diffusion_model = before
    assert_steps(host, found, CONSTANT)


def test_other_weights_in_the_same_unet_compute_their_push(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refiner of the same kind of model (modules/sd_models.py: reload_model_weights); here with the same weights."""
    forward = CFGDenoiser.forward

    def refined(denoiser: CFGDenoiser, *args: Any) -> torch.Tensor:
        if denoiser.step:
            denoiser.inner_model = type(denoiser.inner_model)(host.sd_model)  # update_inner_model
        return forward(denoiser, *args)

    monkeypatch.setattr(CFGDenoiser, "forward", refined)
    assert_steps(host, guided(host, Options(), every=4), CONSTANT)


def test_other_weights_in_the_same_unet_have_aligned_heads_of_their_own(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So as above, with the same weights, on other latents; what they were in both is told."""
    forward = CFGDenoiser.forward

    def refined(denoiser: CFGDenoiser, *args: Any) -> torch.Tensor:
        host.sd_model.sd_checkpoint_info = ("first", "refiner")[denoiser.step]
        return forward(denoiser, *args)

    monkeypatch.setattr(CFGDenoiser, "forward", refined)
    steps = [LATER[0], LATER[3]]
    found, times = guided(host, Options(passes=[steps]), blocks="mid:aligned"), Options().timesteps
    told = [most_aligned_heads(host.unet, "mid", x, time, PLAIN) for x, time in zip(steps, times, strict=True)]
    assert told[0] != told[1]
    for number, heads in enumerate(told):
        host.options = Options(passes=[[steps[number]]], timesteps=times[number:])
        maps = [part_of(1.0, (head,)) for head in heads]
        assert_steps(host, [found[number]], [[2.0]], maps=maps)
    named = " or ".join(f"h{head}" for head in dict.fromkeys([*told[0], *told[1]]))
    assert host.comments == [f"ASAG weakened the heads whose queries and keys agree most: mid.0:{named}"]


@pytest.mark.parametrize(("reuse", "rows"), [(True, [6, 4]), (False, [4, 2, 4])], ids=["shared", "whole"])
def test_a_step_that_uses_the_last_push_costs_nothing(host: Host, reuse: bool, rows: list[int]) -> None:
    """Rows in the last block of the middle: two images, each with and without its prompt, and the weakened ones."""
    with ConvolvedRows(host.network().middle_block[2].in_layers[2].weight) as found:
        guided(host, Options(), reuse=reuse, every=2)
    assert found.rows == rows


def test_the_note_on_whole_passes_counts_the_steps_without_any(host: Host) -> None:
    network = SimpleNamespace(attn_module_list=[object()], original_forward=host.unet.forward)
    script = SimpleNamespace(latest_network=network, title=lambda: "ControlNet")
    host.p.scripts = SimpleNamespace(alwayson_scripts=[script])
    guided(host, Options(**FOUR), every=3)
    assert [comment.partition(":")[0] for comment in host.comments] == [
        "ASAG took a whole extra pass in 2 of 4 guided steps"
    ]


def test_the_figures_know_which_steps_used_the_last_push(host: Host) -> None:
    host.options = Options(**FOUR)
    with torch.no_grad():
        trace = arm(host.adapter, host.p, AsagSettings(enabled=True, figures=True, every=3), unguided=lambda: None)
        host.p.sample()
    assert trace is not None
    assert [step.reused for step in trace.steps] == [False, True, True, False]
    assert trace.steps[0].sizes == pytest.approx(trace.steps[1].sizes, rel=1e-9)
