"""The guider of modular pipelines: its formula, its place in a real modular pipeline, and what it leaves behind."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ClassifierFreeGuidance, EulerDiscreteScheduler
from diffusers.guiders.guider_utils import rescale_noise_cfg
from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.stable_diffusion_xl.modular_blocks_stable_diffusion_xl import (
    StableDiffusionXLCoreDenoiseStep,
)
from torch import Tensor, nn

from asag.blocks import BlocksError
from asag.guidance import keep_contrast
from asag.hosts.diffusers_arguments import ARGUMENTS, LEFT_OUT
from asag.hosts.diffusers_guider import AdversarialSinkhornAttentionGuidance
from asag.hosts.diffusers_models import FAMILIES
from asag.models.base import TokenGrid, UnsupportedModel, family_of
from asag.operators import Identity, QueryBlur, Sinkhorn
from asag.perturb import choose_layers, perturbed
from asag.settings import SettingsError, options
from tests.support import snapshot
from tests.tiny_diffusers import (
    controlnet,
    counted_calls,
    difference,
    flux_transformer,
    inputs,
    latents,
    normal,
    sd3_transformer,
    sd15_unet,
    sdxl_pipe,
    sdxl_unet,
    text_inputs,
    vae,
)

FIELDS = {
    "encoder_hidden_states": ("prompt_embeds", "negative_prompt_embeds"),
    "pooled_projections": ("pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
}


def sd3_call() -> dict[str, Any]:
    return {"hidden_states": normal(2, 4, 8, 12), "timestep": torch.tensor([500.0, 500.0])}


def drive(guider: Any, model: nn.Module, step: int = 0, steps: int = 4) -> tuple[Tensor, list[str]]:
    """One step of SD3's modular denoising loop: the guided prediction, and which batches it ran."""
    state, call, timestep = BlockState(**text_inputs("sd3", images=2)), sd3_call(), torch.tensor(500.0)
    guider.set_state(step=step, num_inference_steps=steps, timestep=torch.tensor(500))
    batches = guider.prepare_inputs_from_block_state(state, FIELDS)
    ran: list[str] = []
    for batch in batches:
        guider.prepare_models(model)
        fields = {name: getattr(batch, name) for name in FIELDS}
        call["timestep"] = timestep.expand(2)
        batch.noise_pred = model(**call, **fields, return_dict=False)[0]
        guider.cleanup_models(model)
        ran.append(batch.__guidance_identifier__)
        assert guider.is_conditional == (ran[-1] != "pred_uncond")
    return guider(batches).pred, ran


def predictions(model: nn.Module, blocks: str, operator: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Conditional, unconditional and perturbed prediction, by hand."""
    text = text_inputs("sd3", images=2)
    cond = {name: text[fields[0]] for name, fields in FIELDS.items()}
    uncond = {name: text[fields[1]] for name, fields in FIELDS.items()}
    family = family_of(model, FAMILIES)
    plain = model(**sd3_call(), **cond).sample
    with perturbed(choose_layers(model, family, blocks), family, operator):
        weakened = model(**sd3_call(), **cond).sample
    return plain, model(**sd3_call(), **uncond).sample, weakened


def modular_pipe(guider: Any, **components: Any) -> Any:
    pipe = StableDiffusionXLCoreDenoiseStep().init_pipeline()
    parts = {"unet": sdxl_unet(), "vae": vae(), "scheduler": EulerDiscreteScheduler()}
    pipe.update_components(**(parts | components), guider=guider)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def modular_inputs(**more: Any) -> dict[str, Any]:
    given = inputs("sdxl", images=2, steps=2)
    return {name: each for name, each in given.items() if name not in ("guidance_scale", "output_type")} | more


# The formula -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("original", [False, True], ids=["diffusers", "original"])
@torch.no_grad()
@pytest.mark.usefixtures("double")
def test_the_prediction_is_equation_4(original: bool) -> None:
    model = sd3_transformer()
    cond, uncond, weakened = predictions(model, "joint.2", Sinkhorn())
    guider = AdversarialSinkhornAttentionGuidance(4.0, use_original_formulation=original)
    pred, ran = drive(guider, model)
    assert ran == ["pred_cond", "pred_uncond", "pred_cond_adversarial"]
    start = cond if original else uncond
    torch.testing.assert_close(pred, start + 4.0 * (cond - uncond) + 1.5 * (cond - weakened))


@torch.no_grad()
@pytest.mark.usefixtures("double")
def test_without_classifier_free_guidance_it_starts_from_the_conditional_prediction() -> None:
    model = sd3_transformer()
    cond, _, weakened = predictions(model, "joint.0-1", Identity())
    for neutral, original in ((1.0, False), (0.0, True)):
        guider = AdversarialSinkhornAttentionGuidance(
            neutral,
            adversarial_guidance_scale=2.5,
            adversarial_guidance_blocks="joint.0-1",
            method="pag",
            use_original_formulation=original,
        )
        pred, ran = drive(guider, model)
        assert ran == ["pred_cond", "pred_cond_adversarial"]
        torch.testing.assert_close(pred, cond + 2.5 * (cond - weakened))
    assert (cond - weakened).abs().max() > 1e-2


@torch.no_grad()
def test_rescale_is_that_of_the_other_guiders() -> None:
    model = sd3_transformer()
    plain, _ = drive(AdversarialSinkhornAttentionGuidance(4.0), model)
    rescaled, _ = drive(AdversarialSinkhornAttentionGuidance(4.0, guidance_rescale=0.6), model)
    cond, _, _ = predictions(model, "auto", Sinkhorn())
    torch.testing.assert_close(rescaled, rescale_noise_cfg(plain, cond, 0.6))
    assert not torch.allclose(rescaled, plain, rtol=1e-2)


@pytest.mark.parametrize(
    ("options", "ran"),
    [
        ({}, ["cua", "cua", "cua", "cua"]),
        ({"adversarial_guidance_start": 0.25, "adversarial_guidance_stop": 0.75}, ["cu", "cua", "cua", "cu"]),
        ({"start": 0.5}, ["ca", "ca", "cua", "cua"]),
        ({"stop": 0.5, "adversarial_guidance_stop": 0.25}, ["cua", "cu", "c", "c"]),
        ({"adversarial_guidance_scale": 0.0}, ["cu"] * 4),
        ({"enabled": False}, ["c"] * 4),
    ],
)
@torch.no_grad()
def test_only_what_the_step_needs_is_run(options: dict[str, Any], ran: list[str]) -> None:
    letters = {"pred_cond": "c", "pred_uncond": "u", "pred_cond_adversarial": "a"}
    guider, model = AdversarialSinkhornAttentionGuidance(4.0, **options), sd3_transformer()
    seen = ["".join(letters[name] for name in drive(guider, model, step)[1]) for step in range(4)]
    assert seen == ran
    if options.get("enabled", True) is False:
        torch.testing.assert_close(drive(guider, model)[0], predictions(model, "auto", Sinkhorn())[0])


def test_a_loop_that_counts_further_than_its_steps_stays_in_the_window() -> None:
    """Heun-like schedulers: more model calls than num_inference_steps."""
    assert len(drive(AdversarialSinkhornAttentionGuidance(4.0), sd3_transformer(), step=6, steps=4)[1]) == 3


@torch.no_grad()
def test_flux_is_guided_too() -> None:
    model = flux_transformer()
    call = {
        "hidden_states": normal(2, 24, 16),
        "encoder_hidden_states": normal(2, 6, 16),
        "pooled_projections": normal(2, 16),
        "timestep": torch.tensor([0.5, 0.5]),
        "img_ids": torch.zeros(24, 3),
        "txt_ids": torch.zeros(6, 3),
    }
    guider = AdversarialSinkhornAttentionGuidance(1.0, adversarial_guidance_blocks="double.1, single.0")
    guider.set_state(0, 4, torch.tensor(500))
    outputs: list[Tensor] = []
    for _ in range(2):
        guider.prepare_models(model)
        outputs.append(model(**call).sample)
        guider.cleanup_models(model)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


# The settings ------------------------------------------------------------------------------------------------------


def test_every_setting_has_an_argument_but_those_that_mean_nothing_here() -> None:
    config = dict(AdversarialSinkhornAttentionGuidance().config)
    assert set(ARGUMENTS) == set(options()) - LEFT_OUT
    for name, argument in ARGUMENTS.items():
        assert config[argument] == options()[name][0].default


@pytest.mark.parametrize("schedule", ["linear", "cosine", "bell"])
@torch.no_grad()
@pytest.mark.usefixtures("double")
def test_a_schedule_scales_each_step(schedule: str) -> None:
    """Against the formulas in guidance.py's docstring, for a window of steps 2 to 9 of 10."""
    curve = {
        "linear": lambda place: 1 - place,
        "cosine": lambda place: (1 + math.cos(math.pi * place)) / 2,
        "bell": lambda place: math.sin(math.pi * (place + 0.5 / 8)) ** 2,
    }[schedule]
    model = sd3_transformer()
    cond, uncond, weakened = predictions(model, "auto", Sinkhorn())
    guider = AdversarialSinkhornAttentionGuidance(
        3.0, 2.0, adversarial_guidance_start=0.2, schedule=schedule, use_original_formulation=True
    )
    for step in range(10):
        pred, ran = drive(guider, model, step, 10)
        scale = 2.0 * curve((step / 10 - 0.2) / 0.8) if step >= 2 else 0.0
        assert ("pred_cond_adversarial" in ran) == (step >= 2)
        expected = cond + 3.0 * (cond - uncond) + scale * (cond - weakened)
        torch.testing.assert_close(pred, expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.usefixtures("double")
def test_unit_push_divides_by_the_running_size_and_starts_anew_with_each_picture() -> None:
    model = sd3_transformer()
    cond, _, weakened = predictions(model, "auto", Sinkhorn())
    delta = cond - weakened
    size = delta.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    guider = AdversarialSinkhornAttentionGuidance(1.0, 0.1, unit="push")
    for step in (0, 1, 0):
        pred, _ = drive(guider, model, step)
        torch.testing.assert_close(pred, cond + 0.1 / (size + 1e-3) * delta, rtol=1e-6, atol=1e-8)
    # Another size in the second step: nine tenths of the average are the first one's.
    drive(guider, model, 0)
    model.proj_out.weight *= 3
    model.proj_out.bias *= 3
    pred, _ = drive(guider, model, 1)
    average = (0.9 * size + 0.1 * 3 * size).float().double()
    torch.testing.assert_close(pred, 3 * cond + 0.1 / (average + 1e-3) * 3 * delta, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("original", [False, True])
@torch.no_grad()
@pytest.mark.usefixtures("double")
def test_unit_cfg_gives_the_push_its_size_beside_cfgs_own(original: bool, caplog: pytest.LogCaptureFixture) -> None:
    model = sd3_transformer()
    cond, uncond, weakened = predictions(model, "auto", Sinkhorn())
    cfg, delta = (5.0 if original else 4.0) * (cond - uncond), cond - weakened

    def size(each: Tensor) -> Tensor:
        return each.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()

    def told() -> list[str]:
        return [each.getMessage() for each in caplog.records if each.name.startswith("asag")]

    guider = AdversarialSinkhornAttentionGuidance(5.0, 0.3, unit="cfg", stop=0.75, use_original_formulation=original)
    for step in (0, 1, 3, 0):  # the last but one has no CFG, and goes by those before
        pred, _ = drive(guider, model, step)
        push = 0.3 * size(cfg) / size(delta) * delta
        torch.testing.assert_close(pred, cond + push if step == 3 else cond + cfg + push, rtol=1e-10, atol=1e-10)
    assert not told()
    alone = AdversarialSinkhornAttentionGuidance(
        0.0 if original else 1.0, 0.3, unit="cfg", use_original_formulation=original
    )
    pred, _ = drive(alone, model)
    torch.testing.assert_close(pred, cond + 0.03 / (size(delta) + 1e-3) * delta, rtol=1e-10, atol=1e-10)
    assert told() == ["ASAG uses unit push at 0.1 times the scale: unit cfg needs CFG"]


def test_the_earlier_spelling_of_the_unit_is_read_also_in_what_was_saved() -> None:
    for before, unit in ((True, "push"), (False, "paper")):
        guider = AdversarialSinkhornAttentionGuidance(adaptive=before)
        assert guider.settings.unit == unit
        # As it was written then.
        saved = {"_class_name": type(guider).__name__, "_use_default_values": ["blur"], "adaptive": before}
        assert AdversarialSinkhornAttentionGuidance.from_config(saved).settings.unit == unit
        assert AdversarialSinkhornAttentionGuidance.from_config(guider.config).settings.unit == unit
        written = json.loads(guider.to_json_string())
        assert AdversarialSinkhornAttentionGuidance.from_config(written).settings.unit == unit
    for unit in ("paper", "push", "cfg"):
        with pytest.raises(SettingsError, match=r"adaptive: an earlier name of unit; allowed: unit alone$"):
            AdversarialSinkhornAttentionGuidance(adaptive=True, unit=unit)
    with pytest.raises(SettingsError, match="unit: 'on'; allowed: paper, push, cfg"):
        AdversarialSinkhornAttentionGuidance(adaptive="on")


@pytest.mark.parametrize("kept", [0.0, 0.25])
@torch.no_grad()
@pytest.mark.usefixtures("double")
def test_contrast_leaves_out_what_lies_along_the_picture(kept: float) -> None:
    """SD3's x₀ is x - σ v; here σ is 0.5."""
    model = sd3_transformer()
    cond, uncond, weakened = predictions(model, "auto", Sinkhorn())
    picture = sd3_call()["hidden_states"].double() - 0.5 * cond
    pattern = picture - picture.mean(dim=(2, 3), keepdim=True)
    delta = cond - weakened
    along = (delta * pattern).sum((2, 3), keepdim=True) / pattern.square().sum((2, 3), keepdim=True) * pattern
    pred, _ = drive(AdversarialSinkhornAttentionGuidance(4.0, 2.0, contrast=kept), model)
    expected = uncond + 4.0 * (cond - uncond) + 2.0 * (delta - (1 - kept) * along)
    torch.testing.assert_close(pred, expected, rtol=1e-5, atol=1e-5)  # the picture is float32


@torch.no_grad()
@pytest.mark.usefixtures("double")
def test_blur_and_tolerance_reach_the_operator() -> None:
    model = sd3_transformer()
    for settings, operator in (
        ({"method": "seg", "blur": 0.8}, QueryBlur(0.8)),
        ({"iterations": 9, "tolerance": 0.3}, Sinkhorn(iterations=9, tolerance=0.3)),
    ):
        guider = AdversarialSinkhornAttentionGuidance(1.0, 1.0, **settings)
        family, call = family_of(model, FAMILIES), sd3_call()
        text = text_inputs("sd3", images=2)
        cond = {name: text[fields[0]] for name, fields in FIELDS.items()}
        plain = model(**call, **cond).sample
        with perturbed(choose_layers(model, family, "auto"), family, operator, TokenGrid((8, 12))):
            weakened = model(**call, **cond).sample
        pred, _ = drive(guider, model)
        torch.testing.assert_close(pred, 2 * plain - weakened, rtol=1e-10, atol=1e-10)


def test_contrast_with_a_unet_and_other_code_in_the_model_are_refused_by_name() -> None:
    unet = sdxl_unet()
    pipe = modular_pipe(AdversarialSinkhornAttentionGuidance(4.0, contrast=0.5), unet=unet)
    with pytest.raises(UnsupportedModel, match=r"contrast: 0\.5 with a UNet; allowed: 1"):
        pipe(**modular_inputs(), output="latents")
    pipe = modular_pipe(AdversarialSinkhornAttentionGuidance(4.0), unet=unet)
    unet.mid_block.register_forward_hook(lambda module, args, output: output)
    with pytest.raises(UnsupportedModel, match=r"model: mid_block has the hook .*allowed: a model without it"):
        pipe(**modular_inputs(), output="latents")


# In a modular pipeline ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [4.0, 1.0], ids=["cfg", "no cfg"])
@pytest.mark.parametrize("method", ["asag", "pag"])
@pytest.mark.usefixtures("double")
def test_a_modular_pipeline_gives_what_the_classic_one_gives(scale: float, method: str) -> None:
    unet = sdxl_unet()
    guider = AdversarialSinkhornAttentionGuidance(scale, 2.0, adversarial_guidance_blocks="in.4, mid", method=method)
    before = snapshot(unet)
    modular = modular_pipe(guider, unet=unet)(**modular_inputs(), output="latents")
    assert snapshot(unet) == before
    given = inputs("sdxl", images=2, steps=2, guided=scale != 1.0)
    classic = latents(sdxl_pipe(unet=unet), given, scale=2.0, blocks="in.4, mid", method=method)
    assert difference(modular, classic) < 1e-8
    assert difference(modular, latents(sdxl_pipe(unet=unet), given)) > 1e-2


def test_a_guider_of_scale_0_is_classifier_free_guidance() -> None:
    unet = sdxl_unet()
    ours = modular_pipe(AdversarialSinkhornAttentionGuidance(4.0, 0.0), unet=unet)
    theirs = modular_pipe(ClassifierFreeGuidance(4.0), unet=unet)
    assert torch.equal(ours(**modular_inputs(), output="latents"), theirs(**modular_inputs(), output="latents"))


def test_a_controlnet_that_guesses_takes_the_perturbed_batch_for_a_conditional_one() -> None:
    """It gives nothing to unconditional batches; which one that is, it asks the guider."""
    unet = sdxl_unet()
    net = controlnet(unet)
    guider = AdversarialSinkhornAttentionGuidance(4.0)
    pipe = modular_pipe(guider, unet=unet, controlnet=net)
    image = normal(1, 3, 128, 128, seed=8).sigmoid()
    with counted_calls(unet) as calls, counted_calls(net) as guesses:
        pipe(**modular_inputs(control_image=image, guess_mode=True), output="latents")
    assert (len(calls), len(guesses)) == (6, 4)


def test_the_model_is_as_before_when_the_denoiser_fails() -> None:
    unet = sdxl_unet()
    guider = AdversarialSinkhornAttentionGuidance(4.0)
    pipe = modular_pipe(guider, unet=unet)
    before = snapshot(unet)
    for exception in (ValueError, KeyboardInterrupt):

        def fail(*args: Any, error: type[BaseException] = exception) -> Any:
            raise error("stop")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Sinkhorn, "plain", fail)
            with pytest.raises(exception, match="stop"):
                pipe(**modular_inputs(), output="latents")
        assert snapshot(unet) == before
    assert pipe(**modular_inputs(), output="latents").isfinite().all()


@torch.no_grad()
def test_what_a_loop_left_before_the_denoisers_call_is_undone_at_the_next_step() -> None:
    model, guider = sd3_transformer(), AdversarialSinkhornAttentionGuidance(1.0)
    before = snapshot(model)
    guider.set_state(0, 4, torch.tensor(500))
    for _ in range(2):
        guider.prepare_models(model)
    assert snapshot(model) != before
    guider.set_state(1, 4, torch.tensor(400))
    assert snapshot(model) == before


@torch.no_grad()
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("contrast", [1.0, 0.3])
def test_steps_between_use_the_last_push(contrast: float) -> None:
    """And run no perturbed batch. The prediction changes from step to step: the push doesn't, but for its contrast."""
    model = sd3_transformer()
    cond, _, weakened = predictions(model, "auto", Sinkhorn())
    guider = AdversarialSinkhornAttentionGuidance(1.0, 2.0, every=3, contrast=contrast)
    velocity = sd3_call()["hidden_states"] / 0.5  # of a grey picture, at σ 0.5
    for step, factor in enumerate((1, 2, 4, 4)):
        pred, ran = drive(guider, model, step)
        assert ran == (["pred_cond"] if step in (1, 2) else ["pred_cond", "pred_cond_adversarial"])
        pushed = (factor if step == 3 else 1) * (cond - weakened)
        pushed = keep_contrast(pushed, velocity - factor * cond, contrast)
        torch.testing.assert_close(pred, factor * cond + 2.0 * pushed, rtol=1e-9, atol=1e-9)
        if step < 2:
            model.proj_out.weight *= 2
            model.proj_out.bias *= 2


@torch.no_grad()
def test_a_step_in_which_the_guider_is_disabled_uses_no_push_again() -> None:
    model, guider = sd3_transformer(), AdversarialSinkhornAttentionGuidance(1.0, 2.0, every=4)
    cond = predictions(model, "auto", Sinkhorn())[0]
    assert not torch.equal(drive(guider, model, 0)[0], cond)
    guider.disable()
    pred, ran = drive(guider, model, 1)
    assert ran == ["pred_cond"]
    assert torch.equal(pred, cond)
    guider.enable()
    assert drive(guider, model, 2)[1] == ["pred_cond", "pred_cond_adversarial"]


@torch.no_grad()
def test_a_loop_over_tiles_computes_every_push() -> None:
    model = sd3_transformer()
    guider = AdversarialSinkhornAttentionGuidance(1.0, every=2)
    ran = [drive(guider, model, step)[1] for step in (0, 1, 1, 2, 2)]
    assert [len(each) for each in ran] == [2, 1, 2, 2, 2]


# Its configuration -------------------------------------------------------------------------------------------------


def test_its_configuration_survives_saving(tmp_path: Path) -> None:
    options = {
        "guidance_scale": 5.0,
        "adversarial_guidance_scale": 2.0,
        "adversarial_guidance_start": 0.1,
        "adversarial_guidance_stop": 0.8,
        "adversarial_guidance_blocks": "mid, out.3",
        "iterations": 3,
        "strength": 0.5,
        "method": "similarity",
        "schedule": "bell",
        "contrast": 0.5,
        "unit": "cfg",
        "blur": 2.0,
        "tolerance": 0.1,
        "amount": 0.7,
        "every": 2,
        "reuse": False,
        "guidance_rescale": 0.2,
        "use_original_formulation": True,
        "start": 0.05,
        "stop": 0.9,
        "enabled": False,
    }
    guider = AdversarialSinkhornAttentionGuidance(**options)
    guider.save_pretrained(tmp_path)
    loaded = AdversarialSinkhornAttentionGuidance.from_pretrained(tmp_path)
    for each in (guider, loaded, guider.new(), AdversarialSinkhornAttentionGuidance.from_config(guider.config)):
        assert {name: each.config[name] for name in options} == options
        assert each.settings == guider.settings
        assert (each.guidance_scale, each._start, each._stop, each._enabled) == (5.0, 0.05, 0.9, False)
    assert guider.settings.iterations == 3
    assert "AdversarialSinkhornAttentionGuidance" in repr(guider)


def test_bad_values_are_refused_at_once() -> None:
    with pytest.raises(SettingsError, match=r"iterations: 0; .*method: 'none'"):
        AdversarialSinkhornAttentionGuidance(iterations=0, method="none")
    with pytest.raises(SettingsError, match=r"adversarial_guidance_scale: -1.0; .*guidance_rescale: 'x'"):
        AdversarialSinkhornAttentionGuidance(7.5, -1.0, guidance_rescale="x")
    with pytest.raises(TypeError, match="strenght"):
        AdversarialSinkhornAttentionGuidance(strenght=2)
    with pytest.raises(SettingsError, match=r"adversarial_guidance_blocks: 'mid\.x\.y'"):
        AdversarialSinkhornAttentionGuidance(adversarial_guidance_blocks="mid.x.y")
    with pytest.raises(BlocksError, match=r"'mid'; this model has: joint\.0-3"):
        drive(AdversarialSinkhornAttentionGuidance(adversarial_guidance_blocks="mid"), sd3_transformer())
    with pytest.raises(UnsupportedModel, match="ControlNetModel"):
        drive(AdversarialSinkhornAttentionGuidance(1.0), controlnet_with_noise())


def controlnet_with_noise() -> nn.Module:
    """A model of no known family that takes the loop's call."""
    model = controlnet(sd15_unet())
    model.forward = lambda **given: (given["hidden_states"],)
    return model
