"""ControlNet, IP-Adapter, img2img, inpainting and the pipelines that call their denoiser more than once in a step.

What each adds must reach the perturbed pass, and only the conditional rows of it. The sharpest test of that: with
SoftMax as the operator the perturbed pass is the conditional one, so any wrong row or lost argument shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxImg2ImgPipeline,
    MultiControlNetModel,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLInpaintPipeline,
    T2IAdapter,
)
from torch import Tensor, nn

from asag.models.base import UnsupportedModel
from asag.models.diffusers_mmdit import FluxTransformer
from asag.operators import Sinkhorn
from asag.perturb import choose_layers, perturbed
from asag.settings import AsagSettings
from tests.support import Softmax
from tests.tiny_diffusers import (
    TEXT_WIDTH,
    controlnet,
    counted_calls,
    difference,
    flux_pipe,
    flux_transformer,
    inputs,
    latents,
    lively,
    normal,
    recorded_rows,
    sd3_pipe,
    sd3_transformer,
    sd15_pipe,
    sd15_unet,
    sdxl_pipe,
    sdxl_unet,
)


def image(height: int, width: int, images: int = 1) -> Tensor:
    return normal(images, 3, height, width, seed=8).sigmoid()


def small(kind: str, **more: Any) -> dict[str, Any]:
    """Inputs of two images at 16 x 16 latents (UNets) or 8 x 12 (DiTs), for two steps."""
    given = inputs(kind, images=2, steps=2)
    if kind == "sd15":
        given |= {"height": 128, "width": 128, "latents": given["latents"][..., :16, :16]}
    return given | more


def without(given: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: each for name, each in given.items() if name not in names}


def load_ip_adapter(unet: nn.Module) -> None:
    """A plain IP-Adapter (four image tokens from one embedding) with random weights."""
    widths = {
        "mid": unet.config.block_out_channels[-1],
        "down": unet.config.block_out_channels,
        "up": unet.config.block_out_channels[::-1],
    }
    crossing = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    keys: dict[str, Tensor] = {}
    for index, name in enumerate(crossing):
        part, number = name.split("_")[0], name.split(".")[1]
        width = widths["mid"] if part == "mid" else widths[part][int(number)]
        for which in ("k", "v"):
            keys[f"{2 * index + 1}.to_{which}_ip.weight"] = normal(width, TEXT_WIDTH, seed=index) / 2
    projection = {
        "proj.weight": normal(4 * TEXT_WIDTH, 8),
        "proj.bias": normal(4 * TEXT_WIDTH),
        "norm.weight": 1 + normal(TEXT_WIDTH) / 4,
        "norm.bias": normal(TEXT_WIDTH),
    }
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": keys}], low_cpu_mem_usage=False)
    unet.requires_grad_(False)


def load_flux_ip_adapter(transformer: nn.Module) -> None:
    blocks, width = len(transformer.transformer_blocks), transformer.inner_dim
    keys = {
        f"{block}.to_{which}_ip.{end}": normal(*shape, seed=block) / 2
        for block in range(blocks)
        for which in ("k", "v")
        for end, shape in (("weight", (width, TEXT_WIDTH)), ("bias", (width,)))
    }
    projection = {
        "proj.weight": normal(4 * TEXT_WIDTH, 8),
        "proj.bias": normal(4 * TEXT_WIDTH),
        "norm.weight": 1 + normal(TEXT_WIDTH) / 4,
        "norm.bias": normal(TEXT_WIDTH),
    }
    transformer._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": keys}], low_cpu_mem_usage=False)
    transformer.requires_grad_(False)


Variant = tuple[Any, dict[str, Any]]


def controlnet_sd15() -> Variant:
    unet = sd15_unet()
    pipe = sd15_pipe(StableDiffusionControlNetPipeline, unet, controlnet=controlnet(unet))
    return pipe, small("sd15", image=image(128, 128, 2))


def two_controlnets_guessing() -> Variant:
    """guess_mode gives the unconditional rows residuals of zero: rows mixed up would show most."""
    unet = sd15_unet()
    nets = MultiControlNetModel([controlnet(unet), controlnet(unet)])
    pipe = sd15_pipe(StableDiffusionControlNetPipeline, unet, controlnet=nets)
    return pipe, small("sd15", image=[image(128, 128, 2)] * 2, guess_mode=True)


def controlnet_sdxl() -> Variant:
    unet = sdxl_unet()
    pipe = sdxl_pipe(StableDiffusionXLControlNetPipeline, unet, controlnet=controlnet(unet))
    return pipe, small("sdxl", image=image(128, 128, 2))


def controlnet_sd3() -> Variant:
    transformer = sd3_transformer()
    options = {"num_layers": 2, "num_extra_conditioning_channels": 0, "load_weights_from_transformer": False}
    net = lively(SD3ControlNetModel.from_transformer(transformer, **options), 5)
    pipe = sd3_pipe(StableDiffusion3ControlNetPipeline, transformer, controlnet=net)
    return pipe, small("sd3", control_image=image(64, 96, 2))


def controlnet_flux() -> Variant:
    transformer = flux_transformer()
    config = {"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16}
    config |= {"num_attention_heads": 2, "joint_attention_dim": TEXT_WIDTH, "pooled_projection_dim": TEXT_WIDTH}
    net = lively(FluxControlNetModel(**config, axes_dims_rope=(4, 6, 6)), 5)
    pipe = flux_pipe(FluxControlNetPipeline, transformer, controlnet=net)
    return pipe, small("flux", control_image=image(64, 96, 2))


def t2i_adapter() -> Variant:
    """The UNet takes the adapter's states out of the list that it is given."""
    adapter = lively(T2IAdapter(channels=[8, 8, 16, 16], num_res_blocks=1, downscale_factor=8), 5)
    pipe = sd15_pipe(StableDiffusionAdapterPipeline, adapter=adapter)
    return pipe, small("sd15", image=image(128, 128, 2))


def ip_adapter_sd15() -> Variant:
    unet = sd15_unet()
    load_ip_adapter(unet)
    return sd15_pipe(unet=unet), small("sd15", ip_adapter_image_embeds=[normal(2, 1, 8)])


def ip_adapter_flux() -> Variant:
    transformer = flux_transformer()
    load_flux_ip_adapter(transformer)
    given = small("flux", ip_adapter_image_embeds=[normal(1, 1, 8)], negative_ip_adapter_image_embeds=[normal(1, 1, 8)])
    return flux_pipe(transformer=transformer), given


def img2img_sd15() -> Variant:
    given = without(small("sd15", image=image(128, 128), strength=0.7, num_inference_steps=3), "latents")
    return sd15_pipe(StableDiffusionImg2ImgPipeline), without(given, "height", "width")


def controlnet_img2img_sd15() -> Variant:
    unet = sd15_unet()
    pipe = sd15_pipe(StableDiffusionControlNetImg2ImgPipeline, unet, controlnet=controlnet(unet))
    given = small("sd15", image=image(128, 128, 2), control_image=image(128, 128, 2), strength=0.7)
    return pipe, without(given, "latents")


def inpaint_sd15() -> Variant:
    """A UNet of nine channels, which gets the mask and the masked image twice too."""
    given = small("sd15", image=image(128, 128), mask_image=image(128, 128)[:, :1].round())
    return sd15_pipe(StableDiffusionInpaintPipeline, sd15_unet(in_channels=9)), given


def inpaint_sdxl() -> Variant:
    given = small("sdxl", image=image(128, 128), mask_image=image(128, 128)[:, :1].round(), strength=1.0)
    return sdxl_pipe(StableDiffusionXLInpaintPipeline), given


def img2img_sd3() -> Variant:
    given = small("sd3", image=image(64, 96), strength=0.7, num_inference_steps=3)
    return sd3_pipe(StableDiffusion3Img2ImgPipeline), without(given, "latents")


def img2img_flux() -> Variant:
    given = small("flux", image=image(64, 96), strength=0.7, num_inference_steps=3)
    return flux_pipe(FluxImg2ImgPipeline), without(given, "latents")


def guidance_embedded_flux() -> Variant:
    return flux_pipe(transformer=flux_transformer(guidance_embeds=True)), small("flux", guidance_scale=3.5)


VARIANTS: list[Callable[[], Variant]] = [
    controlnet_sd15,
    two_controlnets_guessing,
    controlnet_sdxl,
    controlnet_sd3,
    controlnet_flux,
    t2i_adapter,
    ip_adapter_sd15,
    ip_adapter_flux,
    img2img_sd15,
    controlnet_img2img_sd15,
    inpaint_sd15,
    inpaint_sdxl,
    img2img_sd3,
    img2img_flux,
    guidance_embedded_flux,
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda each: each.__name__)
def test_the_perturbed_pass_sees_what_the_conditional_rows_saw(
    variant: Callable[[], Variant], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, given = variant()

    def run(**settings: Any) -> Tensor:
        torch.manual_seed(0)  # SD3 encodes a control image without the generator
        return latents(pipe, given | {"generator": torch.Generator().manual_seed(0)}, **settings)

    plain = run()
    assert difference(run(blocks="all", scale=1.5), plain) > 1e-2
    monkeypatch.setattr(AsagSettings, "operator", lambda settings: Softmax())
    assert difference(run(blocks="all", scale=1.5), plain) < 2e-4


def test_img2img_counts_its_own_steps() -> None:
    pipe, given = img2img_sd15()
    given |= {"num_inference_steps": 4, "strength": 0.5}
    with counted_calls(pipe.unet) as rows:
        latents(pipe, given, scale=1.5, start=0.5, reuse=False)
    assert rows == [4, 4, 2]  # two steps of four, the second of them guided


def test_img2img_rescales_the_picture_at_its_own_noise_level() -> None:
    pipe, given = img2img_sd3()
    given |= {"num_inference_steps": 4, "strength": 0.5}
    samples: list[Tensor] = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda transformer, args, kwargs: samples.append(kwargs["hidden_states"]), with_kwargs=True
    )
    with handle, recorded_rows(pipe.transformer) as rows:
        for settings in ({}, {"scale": 30.0, "rescale": 1.0}):
            latents(pipe, given | {"generator": torch.Generator().manual_seed(0)}, **settings)
    sigma = pipe.scheduler.sigmas[2]  # the first two of four steps are left out
    (_, plain), (uncond, cond) = rows[0].chunk(2), rows[2].chunk(2)
    guided = uncond + given["guidance_scale"] * (cond - uncond)
    spreads = [(samples[0].chunk(2)[0] - sigma * each).std(dim=(1, 2, 3)) for each in (plain, guided)]
    torch.testing.assert_close(spreads[1], spreads[0], rtol=1e-4, atol=1e-5)


# Flux's negative prompt --------------------------------------------------------------------------------------------


def test_flux_gives_the_negative_prompts_prediction_the_same_shift() -> None:
    pipe, given = flux_pipe(), inputs("flux", images=2, steps=2)
    with recorded_rows(pipe.transformer) as rows:
        latents(pipe, given)
        latents(pipe, given, scale=2.0, blocks="double.1")
    plain, guided = rows[:2], rows[4:6]
    shift = guided[0] - plain[0]
    torch.testing.assert_close(guided[1] - plain[1], shift, rtol=1e-4, atol=1e-5)
    layers = choose_layers(pipe.transformer, FluxTransformer(), "double.1")
    with torch.no_grad(), perturbed(layers, FluxTransformer(), Sinkhorn()):
        weakened = pipe.transformer(
            hidden_states=given["latents"],
            timestep=pipe.scheduler.timesteps[:1].expand(2) / 1000,
            encoder_hidden_states=given["prompt_embeds"],
            pooled_projections=given["pooled_prompt_embeds"],
            img_ids=pipe._prepare_latent_image_ids(2, 4, 6, given["latents"].device, torch.float32),
            txt_ids=torch.zeros(6, 3),
        ).sample
    torch.testing.assert_close(shift, 2.0 * (plain[0] - weakened), rtol=1e-3, atol=1e-5)


def test_flux_with_a_negative_prompt_costs_one_more_pass_in_the_window() -> None:
    pipe = flux_pipe()
    with counted_calls(pipe.transformer) as rows:
        latents(pipe, inputs("flux", steps=4), scale=1.5, start=0.5, reuse=False)
    assert len(rows) == 2 + 2 + 3 + 3
    with counted_calls(pipe.transformer) as rows:
        latents(pipe, inputs("flux", steps=4, guided=False), scale=1.5, start=0.5, reuse=False)
    assert len(rows) == 1 + 1 + 2 + 2


def test_flux_rescale_works_alone_and_is_refused_with_a_negative_prompt() -> None:
    pipe, given = flux_pipe(), inputs("flux", steps=1, guided=False)
    with recorded_rows(pipe.transformer) as rows:
        latents(pipe, given)
        latents(pipe, given, scale=20.0)
        latents(pipe, given, scale=20.0, rescale=1.0)
    sigma = pipe.scheduler.sigmas[0]
    plain, guided, rescaled = (given["latents"] - sigma * each for each in rows)
    torch.testing.assert_close(rescaled, guided * plain.std() / guided.std(), rtol=1e-4, atol=1e-5)
    with pytest.raises(UnsupportedModel, match=r"rescale: 0\.5 with a negative prompt in FluxPipeline; allowed: 0"):
        latents(pipe, inputs("flux"), rescale=0.5)


def test_flux_gets_the_grid_of_its_position_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    grids: list[Any] = []

    class Recording(Softmax):
        def joint(self, query, key, value, image, grid=None):
            grids.append(grid)
            return super().joint(query, key, value, image, grid)

    monkeypatch.setattr(AsagSettings, "operator", lambda settings: Recording())
    latents(flux_pipe(), inputs("flux", steps=1, guided=False), blocks="double.0, single.0")
    assert grids == [(4, 6), (4, 6)]


# SD3's skip-layer guidance -----------------------------------------------------------------------------------------


def test_sd3_skip_layer_guidance_gets_the_same_shift() -> None:
    pipe = sd3_pipe()
    given = inputs("sd3", images=2, steps=4) | {"skip_guidance_layers": [1]}
    given |= {"skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    with recorded_rows(pipe.transformer) as rows:
        latents(pipe, given)
        plain = list(rows)
        rows.clear()
        latents(pipe, given, scale=2.0, start=0.0, end=0.25)
        early = list(rows)
        rows.clear()
        latents(pipe, given, scale=2.0, start=0.25)
    assert [each.shape[0] for each in rows] == [each.shape[0] for each in plain] == [4, 4, 2, 4, 2, 4, 2]
    assert torch.equal(rows[0], plain[0])
    shift = rows[1] - plain[1]
    assert shift.abs().max() > 1e-3
    torch.testing.assert_close(rows[2] - plain[2], shift[2:], rtol=1e-4, atol=1e-5)
    assert not torch.equal(early[0], plain[0])
    with counted_calls(pipe.transformer) as calls:
        latents(pipe, given, scale=2.0, end=0.5, reuse=False)
    assert len(calls) == 7 + 2
