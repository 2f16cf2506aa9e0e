"""asag_guidance: against diffusers' own PAG, what it leaves behind, and which steps it guides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FirstBlockCacheConfig,
    HeunDiscreteScheduler,
    StableDiffusion3PAGPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPAGPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionXLPAGPipeline,
)
from torch import Tensor

from asag.blocks import BlocksError
from asag.hosts import diffusers_call
from asag.hosts.diffusers_pipeline import asag_guidance
from asag.kernel_choice import DeviceLost
from asag.models.base import UnsupportedModel
from asag.models.diffusers_mmdit import Sd3Transformer
from asag.operators import Sinkhorn
from asag.perturb import choose_layers, perturbed
from asag.settings import SettingsError
from tests.support import broken_cuda, snapshot
from tests.tiny_diffusers import (
    PIPES,
    SDXL_DEPTHS,
    controlnet,
    counted_calls,
    difference,
    flux_pipe,
    inputs,
    latents,
    normal,
    recorded_rows,
    sd3_pipe,
    sd3_transformer,
    sd15_pipe,
    sd15_unet,
    sdxl_pipe,
    sdxl_unet,
)

UNETS = ("sd15", "sdxl")

# Against diffusers' perturbed-attention guidance -------------------------------------------------------------------


@pytest.mark.parametrize("guided", [True, False], ids=["cfg", "no cfg"])
@pytest.mark.parametrize(
    ("kind", "pag_class", "pag_layer", "blocks"),
    [
        ("sd15", StableDiffusionPAGPipeline, "mid", "mid"),
        ("sd15", StableDiffusionPAGPipeline, "down_blocks.1.attentions.0", "in.4"),
        ("sd15", StableDiffusionPAGPipeline, "up_blocks.1.attentions.0", "out.3"),
        ("sdxl", StableDiffusionXLPAGPipeline, "mid", "mid"),
        ("sdxl", StableDiffusionXLPAGPipeline, "up_blocks.1.attentions.2", "out.5"),
        ("sd3", StableDiffusion3PAGPipeline, "blocks.1", "joint.1"),
        ("sd3", StableDiffusion3PAGPipeline, "blocks.3", "joint.3"),
    ],
)
@pytest.mark.usefixtures("double")
def test_method_pag_is_diffusers_pag(kind: str, pag_class: type, pag_layer: str, blocks: str, guided: bool) -> None:
    pipe, given = PIPES[kind](), inputs(kind, images=2, guided=guided, steps=2)
    unguided = latents(pipe, given)
    ours = latents(pipe, given, method="pag", scale=2.0, blocks=blocks)
    part = "transformer" if kind == "sd3" else "unet"
    pag = PIPES[kind](pag_class, getattr(pipe, part), pag_applied_layers=pag_layer)
    theirs = pag(**given, pag_scale=2.0).images
    assert difference(ours, theirs) < 1e-10
    assert difference(unguided, theirs) > 1e-2


@pytest.mark.usefixtures("double")
def test_method_pag_is_diffusers_pag_with_a_controlnet() -> None:
    unet = sd15_unet()
    parts = {"unet": unet, "controlnet": controlnet(unet)}
    given = inputs("sd15", steps=2) | {"image": normal(1, 3, 256, 256).sigmoid()}
    ours = latents(sd15_pipe(StableDiffusionControlNetPipeline, **parts), given, method="pag", scale=2.0)
    pag = sd15_pipe(StableDiffusionControlNetPAGPipeline, **parts, pag_applied_layers="mid")
    assert difference(ours, pag(**given, pag_scale=2.0).images) < 1e-10


# The guided prediction ---------------------------------------------------------------------------------------------


def test_rows_of_an_image_are_shifted_by_scale_times_delta() -> None:
    pipe, given = sd3_pipe(), inputs("sd3", images=2, steps=1)
    with recorded_rows(pipe.transformer) as rows:
        latents(pipe, given)
        latents(pipe, given, scale=2.5, blocks="joint.1")
    plain, guided = rows
    embeds = {name: torch.cat([given[f"negative_{name}"], given[name]])[2:] for name in given if name in PROMPTS}
    layers = choose_layers(pipe.transformer, Sd3Transformer(), "joint.1")
    with torch.no_grad(), perturbed(layers, Sd3Transformer(), Sinkhorn()):
        weakened = pipe.transformer(
            hidden_states=given["latents"],
            timestep=pipe.scheduler.timesteps[:1].expand(2),
            encoder_hidden_states=embeds["prompt_embeds"],
            pooled_projections=embeds["pooled_prompt_embeds"],
        ).sample
    shift = 2.5 * (plain[2:] - weakened)
    torch.testing.assert_close(guided, plain + shift.repeat(2, 1, 1, 1), rtol=1e-4, atol=1e-5)


PROMPTS = ("prompt_embeds", "pooled_prompt_embeds")


PREDICTED = {
    "sd15": DDIMScheduler,
    "sd15, sigmas": EulerDiscreteScheduler,
    "sd15, v": DDIMScheduler,
    "sd15, picture": DDIMScheduler,
    "sd3": None,
    "flux": None,
}


def predicting(kind: str) -> Any:
    """A pipeline whose denoiser predicts what `kind` says."""
    pipe = PIPES[kind[:4]]()
    if PREDICTED[kind] is not None:
        told = {"sd15, v": "v_prediction", "sd15, picture": "sample"}.get(kind, "epsilon")
        pipe.scheduler = PREDICTED[kind].from_config(pipe.scheduler.config, prediction_type=told)
    return pipe


def picture_by(pipe: Any, prediction: Tensor, sample: Tensor) -> Tensor:
    """What a prediction in the first step stands for, by the scheduler."""
    scheduler = pipe.scheduler
    if not hasattr(pipe, "unet"):
        return sample - scheduler.sigmas[0] * prediction
    scheduler.set_timesteps(scheduler.num_inference_steps)
    sample = (sample * scheduler.init_noise_sigma).repeat(len(prediction) // len(sample), 1, 1, 1)
    return scheduler.step(prediction, scheduler.timesteps[0], sample).pred_original_sample


@pytest.mark.parametrize("guided", [True, False], ids=["cfg", "no cfg"])
@pytest.mark.parametrize("kind", [each for each in PREDICTED if each != "flux"])
def test_rescale_brings_the_spread_to_that_of_the_conditional_prediction(kind: str, guided: bool) -> None:
    """Of the picture that the prediction stands for, as the scheduler itself makes it."""
    pipe, given = predicting(kind), inputs(kind[:4], images=2, steps=2, guided=guided)
    denoiser = pipe.unet if kind.startswith("sd15") else pipe.transformer
    found = {}
    for amount in (None, 0.0, 0.7, 1.0):
        with recorded_rows(denoiser) as rows:
            latents(pipe, given, **({} if amount is None else {"scale": 30.0, "rescale": amount}))
        found[amount] = rows[0]

    def spread(prediction: Tensor) -> Tensor:
        return picture_by(pipe, prediction, given["latents"]).std(dim=(1, 2, 3), keepdim=True)

    def combined(rows: Tensor) -> Tensor:
        if not guided:
            return rows
        uncond, cond = rows.chunk(2)
        return uncond + given["guidance_scale"] * (cond - uncond)

    wanted = spread(found[None][-2:])
    assert (spread(combined(found[0.0])) / wanted - 1).abs().min() > 1e-2
    torch.testing.assert_close(spread(combined(found[1.0])), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0.7], 0.3 * found[0.0] + 0.7 * found[1.0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", PREDICTED)
def test_without_contrast_a_push_has_no_part_along_the_picture(kind: str) -> None:
    """The picture is the one that the scheduler itself makes of the prediction."""
    pipe, given = predicting(kind), inputs(kind[:4], images=2, steps=3, guided=False)
    denoiser = pipe.unet if kind.startswith("sd15") else pipe.transformer
    with recorded_rows(denoiser) as rows:
        for settings in ({}, {"scale": 2.0}, {"scale": 2.0, "contrast": 0.0}, {"scale": 2.0, "contrast": 0.5}):
            latents(pipe, given, **settings)
    plain, whole, without, half = (rows[index] for index in (0, 3, 6, 9))  # all on the same latents
    picture = picture_by(pipe, plain, given["latents"])
    over = (1,) if kind == "flux" else (2, 3)
    pattern = picture - picture.mean(over, keepdim=True)

    def along(rows: Tensor) -> Tensor:
        return ((rows - plain) * pattern).sum(over)

    assert along(without).abs().max() < 1e-3 * along(whole).abs().max()
    torch.testing.assert_close(half, (whole + without) / 2, rtol=1e-4, atol=1e-5)
    assert difference(without, plain) > 1e-3


@pytest.mark.parametrize(
    ("settings", "told"), [({"contrast": 0.5}, "contrast: below 1.*: 1,"), ({"rescale": 0.5}, "rescale: above 0.*: 0,")]
)
def test_a_scheduler_that_tells_no_noise_level_is_refused(settings: dict[str, float], told: str) -> None:
    pipe, given = sd15_pipe(), inputs("sd15", steps=2)
    pipe.scheduler = EDMEulerScheduler()
    with pytest.raises(UnsupportedModel, match=told.replace(".*", " with EDMEulerScheduler.*allowed")):
        latents(pipe, given, **settings)


def test_a_scheduler_that_tells_no_noise_level_is_guided_with_all_contrast() -> None:
    pipe, given = sd15_pipe(), inputs("sd15", steps=1)
    pipe.scheduler = EDMEulerScheduler()
    assert latents(pipe, given, contrast=1.0).isfinite().all()


@pytest.mark.parametrize("kind", PIPES)
def test_a_batch_is_its_images_one_by_one(kind: str) -> None:
    """In float64: random networks are chaotic enough to blow the rounding of another batch size up."""
    pipe, given = PIPES[kind]().to(torch.float64), inputs(kind, images=3, steps=1 if kind in UNETS else 2)
    given = {name: each.double() if isinstance(each, Tensor) else each for name, each in given.items()}
    batch = latents(pipe, given, scale=1.5)
    for image in range(3):
        single = {name: each[image : image + 1] if isinstance(each, Tensor) else each for name, each in given.items()}
        assert difference(latents(pipe, single, scale=1.5), batch[image : image + 1]) < 1e-5


@pytest.mark.parametrize("kind", PIPES)
def test_guidance_is_deterministic_and_does_something(kind: str) -> None:
    pipe, given = PIPES[kind](), inputs(kind, steps=1 if kind in UNETS else 2)
    first = latents(pipe, given, scale=1.5)
    assert torch.equal(first, latents(pipe, given, scale=1.5))
    assert difference(first, latents(pipe, given)) > 1e-3


@pytest.mark.parametrize(
    "settings",
    [{"scale": 0}, {"enabled": False}, {"start": 0.4, "end": 0.4}, {"start": 0.8, "end": 0.2}, {"amount": 0}],
)
def test_settings_that_change_nothing_touch_nothing(settings: dict[str, Any]) -> None:
    pipe, given = sd3_pipe(), inputs("sd3")
    before, plain = snapshot(pipe.transformer), latents(pipe, given)
    with asag_guidance(pipe, **settings):
        assert snapshot(pipe.transformer) == before
        assert torch.equal(pipe(**given).images, plain)


def test_an_empty_window_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with asag_guidance(sd3_pipe(), start=0.8, end=0.2):
        pass
    assert caplog.messages == ["ASAG guides no step: start, 0.8, isn't before end, 0.2"]


def test_outputs_keep_their_type() -> None:
    class Predicting(StableDiffusion3Pipeline):
        def predict(self, **call: Any) -> Any:
            return self.transformer(**call)

    pipe = sd3_pipe(Predicting)
    pipe(**inputs("sd3"))
    call = {"hidden_states": normal(2, 4, 8, 8), "timestep": torch.tensor([500.0, 500.0])}
    call["hidden_states"][1] = call["hidden_states"][0]
    call |= {"encoder_hidden_states": normal(2, 6, 16), "pooled_projections": normal(2, 16)}
    plain = pipe.transformer(**call)
    with asag_guidance(pipe):
        as_object, as_tuple = pipe.predict(**call), pipe.predict(**call, return_dict=False)
    assert type(as_object) is type(plain)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_object.sample, as_tuple[0])
    assert not torch.equal(as_object.sample, plain.sample)


# What is left behind -----------------------------------------------------------------------------------------------


def interrupt_at(place: str, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Makes a pipeline call end with an exception; returns what the call needs for it."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise kind("stop")

    if place == "callback":
        return {"callback_on_step_end": fail}
    for name in ("plain", "joint"):  # with Triton's kernels joint attention needs no plain one
        monkeypatch.setattr(Sinkhorn, name, fail)
    return {}


@pytest.mark.parametrize("kind", PIPES)
@pytest.mark.parametrize("place", ["callback", "perturbed pass"])
@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt])
def test_the_model_is_as_before(
    kind: str, place: str, exception: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, given = PIPES[kind](), inputs(kind, steps=1)
    model = pipe.unet if kind in UNETS else pipe.transformer
    if kind == "flux":
        pipe(**given)  # its cache_context sets an attribute for good
    before = snapshot(model)
    with asag_guidance(pipe, blocks="all"):
        assert snapshot(model) != before
        if kind not in UNETS:
            pipe(**given)
    assert snapshot(model) == before
    failing = given | interrupt_at(place, exception, monkeypatch)
    with pytest.raises(exception, match="stop"), asag_guidance(pipe, blocks="all"):
        pipe(**failing)
    assert snapshot(model) == before


def test_a_kernel_that_broke_the_device_is_named_wherever_the_pipeline_stumbled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stumble(*called: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    pipe = sd15_pipe()
    before = snapshot(pipe.unet)
    broken_cuda(monkeypatch)
    with pytest.raises(DeviceLost, match="restart with ASAG_IMPL=streaming"), asag_guidance(pipe, blocks="mid"):
        pipe(**inputs("sd15", steps=1), callback_on_step_end=stumble)
    assert snapshot(pipe.unet) == before


def test_of_nested_guidances_the_inner_holds() -> None:
    pipe, given = sd3_pipe(), inputs("sd3")
    before, plain = snapshot(pipe.transformer), latents(pipe, given)
    outer, inner = latents(pipe, given, scale=1.0), latents(pipe, given, scale=3.0, blocks="joint.0")
    with asag_guidance(pipe, scale=1.0):
        with asag_guidance(pipe, scale=3.0, blocks="joint.0"):
            assert torch.equal(pipe(**given).images, inner)
        assert torch.equal(pipe(**given).images, outer)
        with asag_guidance(pipe, scale=0):
            assert torch.equal(pipe(**given).images, plain)
        with pytest.raises(ZeroDivisionError), asag_guidance(pipe, scale=3.0):
            raise ZeroDivisionError
        assert torch.equal(pipe(**given).images, outer)
    assert snapshot(pipe.transformer) == before
    assert torch.equal(pipe(**given).images, plain)


def test_an_offloader_may_replace_forward_between_two_images() -> None:
    """accelerate sets `forward` anew after each pipeline call (DiffusionPipeline.maybe_free_model_hooks)."""
    pipe, given = sd3_pipe(), inputs("sd3")
    expected = latents(pipe, given, scale=1.5)
    add_hook_to_module(pipe.transformer, ModelHook())
    with asag_guidance(pipe, scale=1.5):
        assert torch.equal(pipe(**given).images, expected)
        remove_hook_from_module(pipe.transformer)
        add_hook_to_module(pipe.transformer, ModelHook())
        assert torch.equal(pipe(**given).images, expected)
    assert pipe.transformer._hf_hook is not None
    assert not pipe.transformer._forward_hooks


# Which steps are guided --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "runs"),
    [
        ({}, [2, 1, 2, 1, 2, 1, 2, 1]),
        ({"start": 0.5}, [2, 2, 2, 1, 2, 1]),
        ({"start": 0.25, "end": 0.5}, [2, 2, 1, 2, 2]),
        ({"start": 0.3, "end": 0.4}, [2, 2, 2, 2]),
    ],
)
def test_only_steps_in_the_window_cost_a_pass(settings: dict[str, float], runs: list[int]) -> None:
    pipe = sd3_pipe()
    with counted_calls(pipe.transformer) as rows:
        latents(pipe, inputs("sd3", steps=4), scale=1.5, reuse=False, **settings)
    assert [each[0] if isinstance(each, tuple) else each for each in rows] == runs


def test_steps_before_the_window_are_those_of_no_guidance() -> None:
    pipe, given = sd3_pipe(), inputs("sd3", steps=4)

    def by_step(**settings: Any) -> list[Tensor]:
        steps: list[Tensor] = []

        def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            steps.append(tensors["latents"])
            return tensors

        latents(pipe, given | {"callback_on_step_end": keep}, **settings)
        return steps

    plain, guided = by_step(), by_step(start=0.5)
    assert [torch.equal(*pair) for pair in zip(plain, guided, strict=True)] == [True, True, False, False]


def test_a_schedule_scales_each_step() -> None:
    pipe, given = sd3_pipe(), inputs("sd3", steps=4)

    def shifts(**settings: Any) -> list[float]:
        seen: list[float] = []
        original = diffusers_call.shift_rows

        def spy(rows: Tensor, shift: Tensor, images: list[int]) -> None:
            seen.append(float(shift.abs().mean()))
            original(rows, torch.zeros_like(shift), images)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(diffusers_call, "shift_rows", spy)
            latents(pipe, given, **settings)
        return seen

    constant, linear = shifts(schedule="constant"), shifts(schedule="linear")
    assert [late / early for early, late in zip(constant, linear, strict=True)] == pytest.approx([1, 0.75, 0.5, 0.25])


def test_unit_push_gives_the_push_its_size_and_starts_anew_with_each_image() -> None:
    pipe, given = sd3_pipe(), inputs("sd3", images=2, steps=1)
    with recorded_rows(pipe.transformer) as rows:
        plain = latents(pipe, given)
        first = latents(pipe, given, scale=0.1, unit="push")
    size = (rows[1] - rows[0]).square().mean(dim=(1, 2, 3)).sqrt()
    torch.testing.assert_close(size, torch.full((4,), 0.1), rtol=1e-2, atol=1e-3)
    with asag_guidance(pipe, scale=0.1, unit="push"):
        other = pipe(**inputs("sd3", images=2, steps=1, seed=4)).images
        assert torch.equal(pipe(**given).images, first)
    assert not torch.equal(first, plain)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", [each for each in PREDICTED if each != "flux"])
@pytest.mark.usefixtures("double")
def test_unit_cfg_gives_the_push_its_size_beside_cfgs_own_and_starts_anew_with_each_image(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    pipe, given = predicting(kind), inputs(kind[:4], images=2, steps=2)
    denoiser = pipe.unet if kind.startswith("sd15") else pipe.transformer
    with recorded_rows(denoiser) as rows:
        latents(pipe, given)
        first = latents(pipe, given, scale=0.3, unit="cfg")
    uncond, cond = rows[0].chunk(2)
    shift = rows[2] - rows[0]

    def size(each: Tensor) -> Tensor:
        return each.square().mean(dim=(1, 2, 3)).sqrt()

    own = (given["guidance_scale"] - 1) * size(cond - uncond)
    torch.testing.assert_close(size(shift), 0.3 * own.repeat(2), rtol=1e-10, atol=1e-10)
    with asag_guidance(pipe, scale=0.3, unit="cfg"):
        pipe(**inputs(kind[:4], images=2, steps=2, seed=4))
        assert torch.equal(pipe(**given).images, first)
    assert not caplog.messages


@pytest.mark.usefixtures("double")
def test_pictures_in_unit_cfg_are_the_same_whatever_the_unet_predicts() -> None:
    """The same network as one of noise, of velocities and of pictures: α and σ are the scheduler's, of float32."""
    found = {}
    for kind in ("epsilon", "v_prediction", "sample"):
        pipe = sd15_pipe(unet=sd15_unet())
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type=kind)
        alphas, original = pipe.scheduler.alphas_cumprod, pipe.unet.forward

        def forward(x: Tensor, t: Any, *args: Any, kind=kind, alphas=alphas, original=original, **more: Any) -> Any:
            (noise,) = original(x, t, *args, **more)
            alpha, sigma = alphas[int(t)].sqrt(), (1 - alphas[int(t)]).sqrt()
            if kind == "v_prediction":
                return ((noise - sigma * x) / alpha,)
            return (noise if kind == "epsilon" else (x - sigma * noise) / alpha,)

        pipe.unet.forward = forward
        given = inputs("sd15", images=2, steps=3)
        found[kind] = (latents(pipe, given), latents(pipe, given, scale=0.5, unit="cfg", reuse=False))
    push = difference(*found["epsilon"])
    for kind in ("v_prediction", "sample"):
        assert difference(found[kind][1], found["epsilon"][1]) < 1e-5 * push


@pytest.mark.parametrize(("kind", "guided"), [("sd15", False), ("flux", True)])
def test_without_cfg_unit_cfg_is_a_stated_push_and_the_log_says_so(
    kind: str, guided: bool, caplog: pytest.LogCaptureFixture
) -> None:
    pipe, given = PIPES[kind](), inputs(kind, guided=guided)
    stated = latents(pipe, given, scale=0.05, unit="push")
    assert torch.equal(latents(pipe, given, scale=0.5, unit="cfg"), stated)
    (told,) = caplog.messages
    assert told.startswith("ASAG uses unit push at 0.1 times the scale: unit cfg needs CFG, and the calls have none")


@pytest.mark.parametrize(("before", "unit"), [(True, "push"), (False, "paper")])
def test_the_earlier_spelling_of_the_unit_is_read(before: bool, unit: str) -> None:
    pipe, given = sd15_pipe(), inputs("sd15", steps=2)
    assert torch.equal(latents(pipe, given, scale=0.1, adaptive=before), latents(pipe, given, scale=0.1, unit=unit))
    with pytest.raises(SettingsError, match="adaptive: an earlier name of unit; allowed: unit alone"):
        latents(pipe, given, adaptive=before, unit="cfg")


def test_heun_makes_more_model_calls_than_steps() -> None:
    pipe = sd15_pipe(scheduler=HeunDiscreteScheduler())
    with counted_calls(pipe.unet) as rows:
        latents(pipe, inputs("sd15", steps=3), scale=1.5, start=0.5, reuse=False)
    assert rows == [2, 2, 2, 2, 1, 2, 1]  # calls 3 and 4 of 5


def test_each_image_is_counted_anew_also_after_one_that_was_broken_off() -> None:
    pipe, given = sd3_pipe(), inputs("sd3", steps=4)
    expected = latents(pipe, given, scale=1.5, start=0.5)

    def stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe._interrupt = step == 1
        return tensors

    with asag_guidance(pipe, scale=1.5, start=0.5):
        for _ in range(2):
            assert torch.equal(pipe(**given).images, expected)
        pipe(**given, callback_on_step_end=stop)
        assert torch.equal(pipe(**given).images, expected)
        shorter = latents(pipe, inputs("sd3", steps=2))
    assert torch.equal(shorter, latents(pipe, inputs("sd3", steps=2), scale=1.5, start=0.5))


# What is refused ---------------------------------------------------------------------------------------------------


def refused(pipe: Any, error: type[Exception], match: str, **settings: Any) -> None:
    """An error before sampling starts, with nothing left behind."""
    model = pipe.transformer if hasattr(pipe, "transformer") else pipe.unet
    before = snapshot(model)
    with pytest.raises(error, match=match), asag_guidance(pipe, **settings):
        pytest.fail("the context opened")
    assert snapshot(model) == before


def test_settings_and_blocks_are_checked_before_sampling() -> None:
    pipe = sd3_pipe()
    refused(pipe, SettingsError, r"methods: unknown; .*scale: 101", scale=101, methods="pag")
    refused(pipe, SettingsError, r"hires: 'both'; .*hires_scale: 1", hires="both", hires_scale=1)
    refused(pipe, BlocksError, r"'mid'; this model has: joint\.0-3", blocks="mid")
    refused(pipe, BlocksError, r"'joint\.4'", blocks="joint.1, joint.4")


def test_pipelines_of_another_kind_are_refused_by_name() -> None:
    pag = sd15_pipe(StableDiffusionPAGPipeline, pag_applied_layers="mid")
    refused(pag, UnsupportedModel, "StableDiffusionPAGPipeline perturbs attention itself")
    with pytest.raises(UnsupportedModel, match="object has no unet and no transformer"), asag_guidance(object()):
        pass


def test_rows_other_than_uncond_and_cond_are_refused() -> None:
    unet = sd15_unet(in_channels=8)
    pipe = sd15_pipe(StableDiffusionInstructPix2PixPipeline, unet, DDIMScheduler(clip_sample=False, steps_offset=1))
    for images in (1, 2):
        given = inputs("sd15", images=images, steps=1)
        given |= {"image": normal(1, 3, 256, 256).sigmoid(), "image_guidance_scale": 1.5}
        given = {name: each for name, each in given.items() if name not in ("height", "width")}
        with (
            pytest.raises(UnsupportedModel, match=f"StableDiffusionInstructPix2PixPipeline .* {3 * images} rows"),
            asag_guidance(pipe),
        ):
            pipe(**given)


def test_a_compiled_denoiser_stays_compiled_and_is_guided() -> None:
    pipe, given = sd3_pipe(transformer=sd3_transformer(num_layers=1)), inputs("sd3", steps=1)
    plain, expected = latents(pipe, given), latents(pipe, given, scale=1.5)
    compilations: list[int] = []

    def backend(graph: Any, examples: Any) -> Any:
        compilations.append(len(graph.graph.nodes))
        return graph

    pipe.transformer = torch.compile(pipe.transformer, backend=backend)
    assert difference(latents(pipe, given), plain) < 1e-5
    compiled, before = list(compilations), snapshot(pipe.transformer)
    assert difference(latents(pipe, given, scale=1.5), expected) < 1e-5
    assert snapshot(pipe.transformer) == before
    assert difference(latents(pipe, given), plain) < 1e-5
    assert compilations == compiled


def test_a_model_that_reuses_its_layers_outputs_is_refused() -> None:
    pipe = sd3_pipe()
    pipe.transformer.transformer_blocks[2].compile(backend="eager")
    refused(pipe, UnsupportedModel, "SD3Transformer2DModel is compiled in place")
    pipe = flux_pipe()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    refused(pipe, UnsupportedModel, "FluxTransformer2DModel reuses")


def test_sdxl_default_perturbs_all_layers_of_the_middle() -> None:
    pipe, given = sdxl_pipe(unet=sdxl_unet(transformer_layers_per_block=SDXL_DEPTHS)), inputs("sdxl", steps=1)
    seen: list[int] = []
    original: Callable[..., Tensor] = Sinkhorn.plain

    def spy(self: Sinkhorn, query: Tensor, *others: Any) -> Tensor:
        seen.append(query.shape[2])
        return original(self, query, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sinkhorn, "plain", spy)
        latents(pipe, given, scale=1.5)
    assert seen == [16] * 10
