"""Beside other code in the model, other pipelines on it and other threads: guided right, or refused.

With SoftMax as the operator δ has to be 0, so the picture has to be the one without guidance.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tomesd
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FirstBlockCacheConfig,
    FluxImg2ImgPipeline,
    FluxPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    apply_first_block_cache,
)
from diffusers.hooks import apply_layerwise_casting
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn

from asag import perturb
from asag.hosts import diffusers_guidance
from asag.hosts.diffusers_guidance import Guidance
from asag.hosts.diffusers_other_code import other_code
from asag.hosts.diffusers_pipeline import asag_guidance
from asag.models.base import UnsupportedModel
from asag.operators import Sinkhorn
from asag.settings import AsagSettings
from tests.support import Softmax, snapshot
from tests.tiny_diffusers import (
    difference,
    flux_pipe,
    inputs,
    latents,
    normal,
    recorded_rows,
    sd15_pipe,
    sd15_unet,
)


@pytest.fixture
def softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AsagSettings, "operator", lambda settings: Softmax())


# Code in the model that treats rows together, or draws ---------------------------------------------------------------


def merging_at_random(unet: nn.Module) -> Any:
    tomesd.apply_patch(unet, ratio=0.5, max_downsample=8, use_rand=True)


def merging(unet: nn.Module) -> Any:
    tomesd.apply_patch(unet, ratio=0.5, max_downsample=8, use_rand=False)


def mixing_rows(unet: nn.Module) -> Any:
    """A double of attention that is shared across the batch (StyleAligned, CrossFrameAttnProcessor)."""

    class Shared(AttnProcessor2_0):
        def __call__(self, attention: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            mixed = hidden_states + 0.3 * hidden_states.mean(0, keepdim=True)
            return super().__call__(attention, mixed, *args, **kwargs)

    unet.up_blocks[1].attentions[1].transformer_blocks[0].attn2.set_processor(Shared())


def drawing(unet: nn.Module) -> Any:
    """A double of an extension that adds noise in a layer."""
    unet.up_blocks[2].register_forward_hook(lambda module, args, output: output + 0.1 * torch.randn_like(output))


@pytest.mark.parametrize("put_in", [merging_at_random, merging, mixing_rows, drawing])
@pytest.mark.parametrize("guided", [True, False], ids=["cfg", "no cfg"])
@pytest.mark.usefixtures("softmax")
def test_delta_is_0_beside_code_that_minds_the_number_of_rows(put_in: Callable[[nn.Module], Any], guided: bool) -> None:
    pipe, given = sd15_pipe(), inputs("sd15", images=2, guided=guided)
    put_in(pipe.unet)

    def run(**settings: Any) -> Tensor:
        torch.manual_seed(3)
        if put_in is merging_at_random:
            pipe.unet._tome_info["args"]["generator"] = None
        return latents(pipe, given, **settings)

    plain = run()
    for settings in ({}, {"blocks": "all"}, {"reuse": False}):
        assert torch.equal(run(**{"scale": 3.0, **settings}), plain)


def test_merged_tokens_are_guided_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    """ε + s (ε - ε̃) by hand, where both see the same tokens merged."""
    pipe, given = sd15_pipe(), inputs("sd15", images=2, steps=1, guided=False)
    merging_at_random(pipe.unet)

    def predict(**settings: Any) -> Tensor:
        torch.manual_seed(3)
        pipe.unet._tome_info["args"]["generator"] = None
        with recorded_rows(pipe.unet) as rows:
            latents(pipe, given, **settings)
        return rows[0]

    plain, guided, double = predict(), predict(scale=1.0), predict(scale=2.0)
    torch.testing.assert_close(double - plain, 2 * (guided - plain), rtol=1e-4, atol=1e-5)
    with pytest.MonkeyPatch.context() as patch:
        mid = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor
        patch.setattr(type(mid), "__call__", _sinkhorn_processor(pipe.unet.mid_block.attentions[0], type(mid).__call__))
        weakened = predict()
    torch.testing.assert_close(guided, plain + (plain - weakened), rtol=1e-4, atol=1e-5)
    assert difference(guided, plain) > 1e-3
    with caplog.at_level(logging.WARNING):
        latents(pipe, given, scale=1.0)
    assert "whole extra passes" in caplog.text
    assert "ToMeBlock" in caplog.text


def _sinkhorn_processor(transformer: nn.Module, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The middle block's self-attention as ASAG's operator has it, written with a processor."""
    chosen = transformer.transformer_blocks[0].attn1

    def call(self: Any, attention: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if attention is not chosen:
            return original(self, attention, hidden_states, *args, **kwargs)
        heads = [
            each(hidden_states).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for each in (attention.to_q, attention.to_k, attention.to_v)
        ]
        out = Sinkhorn().plain(*heads).transpose(1, 2).flatten(2)
        return attention.to_out[0](out)

    return call


# Code in the model that remembers its calls --------------------------------------------------------------------------


def deep_cache(unet: nn.Module) -> None:
    """A double of DeepCache (DeepCacheSDHelper.wrap_block_forward): on every other call a block gives what it gave."""
    block, kept = unet.mid_block, {"calls": 0, "output": None}
    forward = block.forward

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        kept["calls"] += 1
        if kept["calls"] % 2:
            kept["output"] = forward(*args, **kwargs)
        return kept["output"]

    block.forward = wrapped


def hidiffusion(unet: nn.Module) -> None:
    """A double of HiDiffusion: the class of a block is another one, which counts its calls."""
    block = unet.mid_block

    class Counting(type(block)):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            self.timestep = getattr(self, "timestep", 0) + 1
            return super().forward(*args, **kwargs)

    block.__class__ = Counting


def prompt_to_prompt(unet: nn.Module) -> None:
    """A double of prompt-to-prompt: a processor whose controller counts the layers' calls."""
    controller = {"layers": 0}

    class Controlled(AttnProcessor2_0):
        def __init__(self) -> None:
            self.controller = controller

        def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
            self.controller["layers"] += 1
            return super().__call__(*args, **kwargs)

    unet.up_blocks[1].attentions[1].transformer_blocks[0].attn2.set_processor(Controlled())


def recorder(unet: nn.Module) -> None:
    seen: list[Tensor] = []
    unet.mid_block.register_forward_hook(lambda module, args, output: seen.append(output))


@pytest.mark.parametrize("put_in", [deep_cache, hidiffusion, prompt_to_prompt, recorder])
def test_code_that_keeps_something_of_a_call_is_refused(put_in: Callable[[nn.Module], None]) -> None:
    pipe, given = sd15_pipe(), inputs("sd15")
    put_in(pipe.unet)
    before = snapshot(pipe.unet)
    with pytest.raises(UnsupportedModel, match=r"(mid_block|up_blocks).* keeps something of each call"):
        latents(pipe, given, scale=1.5)
    assert len(snapshot(pipe.unet)) == len(before)
    assert not pipe.unet._forward_hooks


def test_code_that_comes_between_two_pictures_is_seen() -> None:
    pipe, given = sd15_pipe(), inputs("sd15")
    with asag_guidance(pipe):
        pipe(**given)
        deep_cache(pipe.unet)
        with pytest.raises(UnsupportedModel, match="keeps something"):
            pipe(**given)


def test_caches_of_diffusers_are_refused_whoever_put_them_in() -> None:
    pipe = flux_pipe()
    apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold=0.1))
    with (
        pytest.raises(UnsupportedModel, match=r"FluxTransformer2DModel reuses outputs of blocks \['fbc_"),
        asag_guidance(pipe),
    ):
        pass


# What is known to be harmless still shares work ----------------------------------------------------------------------


@contextmanager
def free_u(pipe: Any) -> Iterator[None]:
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    yield


@contextmanager
def slicing(pipe: Any) -> Iterator[None]:
    pipe.enable_attention_slicing(1)
    yield


@contextmanager
def casting(pipe: Any) -> Iterator[None]:
    apply_layerwise_casting(pipe.unet, storage_dtype=torch.float16, compute_dtype=torch.float32)
    yield


@contextmanager
def dynamic_cfg(pipe: Any) -> Iterator[None]:
    """The recipe of diffusers' documentation: a callback that leaves classifier-free guidance out from a step on."""
    original = type(pipe).__call__

    def leave_out(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if step == 0:
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
            pipe._guidance_scale = 0.0
        return tensors

    def call(self: Any, **given: Any) -> Any:
        names = ["latents", "prompt_embeds"]
        return original(self, **given, callback_on_step_end=leave_out, callback_on_step_end_tensor_inputs=names)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(pipe), "__call__", call)
        yield


@pytest.mark.parametrize("put_in", [free_u, slicing, casting, dynamic_cfg])
@pytest.mark.usefixtures("softmax")
def test_what_is_known_shares_work_and_gives_no_delta(
    put_in: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, given = sd15_pipe(), inputs("sd15", images=2)
    branches: list[Any] = []

    def branching(*args: Any) -> Any:
        branches.append(args)
        return perturb.branching(*args)

    monkeypatch.setattr(diffusers_guidance, "branching", branching)
    with put_in(pipe):
        assert not other_code(pipe.unet)
        plain = latents(pipe, given)
        guided = latents(pipe, given, scale=3.0, blocks="mid, out.3-5")
    assert difference(guided, plain) < 2e-4
    assert len(branches) == 3


# Several pipelines on one denoiser -----------------------------------------------------------------------------------


def test_each_pipeline_on_a_shared_unet_is_guided_by_its_own_steps_and_cfg() -> None:
    first = sd15_pipe()
    second = StableDiffusionImg2ImgPipeline.from_pipe(first)
    second.set_progress_bar_config(disable=True)
    second.scheduler = EulerDiscreteScheduler.from_config(first.scheduler.config)
    settings = {"scale": 2.0, "start": 0.5, "schedule": "linear", "rescale": 0.7, "contrast": 0.5}
    given = inputs("sd15", steps=4)
    other = {name: each for name, each in inputs("sd15", steps=6, seed=5).items() if name not in ("latents", "height")}
    other = {name: each for name, each in other.items() if name != "width"}
    other |= {"image": normal(1, 3, 256, 256).sigmoid(), "strength": 0.5, "guidance_scale": 2.0}

    def run_second(**settings: Any) -> Tensor:
        return latents(second, other | {"generator": torch.Generator().manual_seed(0)}, **settings)

    alone = latents(first, given, **settings), run_second(**settings)
    with asag_guidance(first, **settings):
        together = latents(first, given), run_second(), latents(first, given)
    assert torch.equal(together[0], alone[0])
    assert torch.equal(together[1], alone[1])
    assert torch.equal(together[2], alone[0])
    assert difference(alone[1], run_second()) > 1e-3


def test_a_pipeline_inside_anothers_step_is_guided_by_its_own_steps() -> None:
    unet = sd15_unet()
    first, second = sd15_pipe(unet=unet), sd15_pipe(unet=unet, scheduler=EulerDiscreteScheduler())
    settings = {"scale": 2.0, "schedule": "linear", "unit": "push"}
    given, other = inputs("sd15", steps=4), inputs("sd15", steps=2, seed=5)
    alone = latents(first, given, **settings), latents(second, other, **settings)
    inside: list[Tensor] = []

    def preview(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        inside.append(second(**other).images)
        return tensors

    with asag_guidance(first, **settings):
        outer = first(**given, callback_on_step_end=preview).images
    assert torch.equal(outer, alone[0])
    assert len(inside) == 4
    assert all(torch.equal(each, alone[1]) for each in inside)


def test_flux_pipelines_that_share_a_transformer() -> None:
    first = flux_pipe()
    second = FluxImg2ImgPipeline.from_pipe(first)
    second.set_progress_bar_config(disable=True)
    given = inputs("flux", steps=2)
    expected = latents(first, given, scale=2.0, end=0.5)
    other = {name: each for name, each in inputs("flux", steps=4).items() if name not in ("latents", "output_type")}
    other |= {"image": normal(1, 3, 64, 96).sigmoid(), "strength": 0.5, "output_type": "latent"}

    def run_second() -> Tensor:
        return second(**other, generator=torch.Generator().manual_seed(0)).images

    with asag_guidance(second, scale=2.0, end=0.5):
        alone = run_second()
    with asag_guidance(first, scale=2.0, end=0.5):
        assert torch.equal(run_second(), alone)
        assert torch.equal(first(**given).images, expected)
    assert isinstance(first, FluxPipeline)


def test_each_of_three_pipelines_on_a_unet_has_counts_of_its_own() -> None:
    unet = sd15_unet()
    pipes = [sd15_pipe(unet=unet) for _ in range(3)]
    guidance = Guidance(pipes[0], unet, AsagSettings(enabled=True), lambda each: True)
    assert [guidance.passes_of(pipe).pipe for pipe in pipes * 2] == pipes * 2
    assert len(guidance.passes) == 3


def test_a_pipeline_of_a_kind_that_cant_be_guided_is_refused_when_it_runs() -> None:
    first = sd15_pipe()
    second = sd15_pipe(StableDiffusionPAGPipeline, first.unet, pag_applied_layers="mid")
    with asag_guidance(first), pytest.raises(UnsupportedModel, match="StableDiffusionPAGPipeline perturbs attention"):
        second(**inputs("sd15", guided=False))
    assert not first.unet._forward_hooks


# Calls that are no step ----------------------------------------------------------------------------------------------


def test_a_call_of_the_denoiser_that_is_no_step_is_refused_and_may_be_made_unguided() -> None:
    pipe, given = sd15_pipe(), inputs("sd15", steps=3)
    call = {"sample": normal(2, 4, 32, 32), "timestep": torch.tensor(500)}
    call["encoder_hidden_states"] = normal(2, *given["prompt_embeds"].shape[1:])
    plain, expected = pipe.unet(**call).sample, latents(pipe, given, scale=2.0, schedule="linear")

    def looking(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe.unet(**call)
        return tensors

    def looking_unguided(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        with asag_guidance(pipe, enabled=False):
            assert torch.equal(pipe.unet(**call).sample, plain)
        return tensors

    with asag_guidance(pipe, scale=2.0, schedule="linear"):
        with pytest.raises(UnsupportedModel, match=r"called by looking in .*allowed: calls of the pipeline"):
            pipe(**given, callback_on_step_end=looking)
        with pytest.raises(UnsupportedModel, match="not by a pipeline's own loop"):
            pipe.unet(**call)
        assert torch.equal(pipe(**given, callback_on_step_end=looking_unguided).images, expected)


# Threads -------------------------------------------------------------------------------------------------------------


def run_in_thread(function: Callable[[], Any]) -> list[Any]:
    """What a function gives or raises in another thread."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(function())
        except UnsupportedModel as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found


def test_two_threads_in_one_denoiser_are_refused_and_the_first_goes_on() -> None:
    unet = sd15_unet()
    pipes = [sd15_pipe(StableDiffusionPipeline, unet), sd15_pipe(StableDiffusionPipeline, unet)]
    given = inputs("sd15")
    expected = latents(pipes[0], given, scale=1.5)
    found: list[Any] = []

    class Meanwhile(Sinkhorn):
        """While the first thread is inside its call, the second one calls."""

        def plain(self, *args: Any) -> Tensor:
            if not found:
                found.extend([None, *run_in_thread(lambda: pipes[1](**given)), *run_in_thread(open_another)])
            return super().plain(*args)

    def open_another() -> None:
        with asag_guidance(pipes[1]):
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AsagSettings, "operator", lambda settings: Meanwhile())
        assert torch.equal(latents(pipes[0], given, scale=1.5), expected)
    assert "two threads called it at once" in str(found[1])
    assert "guided by another thread" in str(found[2])
    assert not unet._forward_hooks


def test_a_pipeline_may_run_in_another_thread_than_the_one_that_opened_it() -> None:
    pipe, given = sd15_pipe(scheduler=DDIMScheduler(clip_sample=False, steps_offset=1)), inputs("sd15")
    expected = latents(pipe, given, scale=1.5)
    with asag_guidance(pipe, scale=1.5):
        assert torch.equal(run_in_thread(lambda: pipe(**given).images)[0], expected)
