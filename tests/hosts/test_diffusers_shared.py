"""The guider's perturbed prediction made in the conditional batch's call, against a whole pass of its own."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.stable_diffusion_3.denoise import StableDiffusion3LoopDenoiser
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from asag.hosts.diffusers_guider import AdversarialSinkhornAttentionGuidance
from asag.hosts.diffusers_shared import COMPILED, OPTIONS, OTHER_INPUTS
from asag.operators import Sinkhorn
from tests.hosts.test_diffusers_guider import modular_inputs, modular_pipe
from tests.support import snapshot
from tests.tiny_diffusers import (
    TEXT_TOKENS,
    controlnet,
    difference,
    flux_transformer,
    inputs,
    normal,
    sd3_transformer,
    sd15_unet,
    sdxl_unet,
    text_inputs,
)

MODELS = {"sd15": sd15_unet, "sdxl": sdxl_unet, "sd3": sd3_transformer, "flux": flux_transformer}
# None of them the first block: something is shared.
BLOCKS = {"sd15": "mid, out.3", "sdxl": "out.1, out.3", "sd3": "joint.1-2", "flux": "double.1, single.1"}
HEADS = {"sd15": "mid:h1", "sdxl": "out.3:aligned", "sd3": "joint.1:h1", "flux": "single.1:h0"}
BOUND = 1e-10


class Loop:
    """A denoising loop as diffusers' modular ones are: batches get the same tensors, but for the text."""

    def __init__(self, kind: str, images: int = 1) -> None:
        self.kind, self.images = kind, images
        self.model: Any = MODELS[kind]()
        self.text = text_inputs(kind, images)
        self.sample = inputs(kind, images)["latents"]
        self.time_ids = torch.tensor([[128.0, 128.0, 0.0, 0.0, 128.0, 128.0]]).repeat(images, 1)
        self.img_ids = torch.tensor([[0.0, row, column] for row in range(4) for column in range(6)])
        self.txt_ids = torch.zeros(TEXT_TOKENS, 3)
        self.more: dict[str, Any] = {}

    def call(self, sample: Tensor, timestep: Tensor, uncond: bool) -> dict[str, Any]:
        """What the denoiser is given, in dictionaries that are made for each batch."""
        sign = "negative_" if uncond else ""
        pooled = self.text.get(f"{sign}pooled_prompt_embeds")
        given = {"encoder_hidden_states": self.text[f"{sign}prompt_embeds"], "return_dict": False, **self.more}
        if self.kind in ("sd15", "sdxl"):
            added = {"text_embeds": pooled, "time_ids": self.time_ids, "image_embeds": None}
            return given | {"sample": sample, "timestep": timestep, "added_cond_kwargs": added}
        given |= {"hidden_states": sample, "timestep": timestep.expand(self.images), "pooled_projections": pooled}
        return given if self.kind == "sd3" else given | {"img_ids": self.img_ids, "txt_ids": self.txt_ids}

    @torch.no_grad()
    def run(self, guider: Any, steps: int = 2, after_batch: Callable[[Tensor], object] | None = None) -> Tensor:
        """The latents after some steps."""
        sample = self.sample.clone()
        for step in range(steps):
            timestep = torch.tensor((0.8 - 0.2 * step) * (1 if self.kind == "flux" else 1000))
            guider.set_state(step=step, num_inference_steps=steps, timestep=timestep)
            batches = guider.prepare_inputs({})
            for batch in batches:
                guider.prepare_models(self.model)
                given = self.call(sample, timestep, batch.__guidance_identifier__ == "pred_uncond")
                batch.noise_pred = self.model(**given)[0]
                guider.cleanup_models(self.model)
                if after_batch is not None:
                    after_batch(sample)
            sample = sample - 0.2 * guider(batches).pred
        return sample


def guider_for(kind: str, cfg: bool = True, **settings: Any) -> Any:
    given = {"adversarial_guidance_blocks": BLOCKS[kind], **settings}
    return AdversarialSinkhornAttentionGuidance(4.0 if cfg else 1.0, 2.0, **given)


@contextmanager
def counted_rows() -> Iterator[dict[nn.Module, list[int]]]:
    """How many rows each call of each module gave. The hook is torch's own for all modules, which no model holds."""
    rows: dict[nn.Module, list[int]] = {}

    def count(module: nn.Module, args: Any, output: Any) -> None:
        first = output
        while isinstance(first, (tuple, list)):
            first = next(each for each in first if each is not None)
        rows.setdefault(module, []).append(first.shape[0])

    handle = register_module_forward_hook(count)
    try:
        yield rows
    finally:
        handle.remove()


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name.startswith("asag")]


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "amount": {"amount": 0.4},
    "every": {"every": 2},
    "push": {"unit": "push", "schedule": "cosine"},
    "seg": {"method": "seg", "blur": 1.5},
}


CASES = [(kind, cfg, images, "plain") for kind in MODELS for cfg in (True, False) for images in (1, 2)]
CASES += [(kind, True, 1, name) for kind in MODELS for name in SETTINGS if name != "plain"]


@pytest.mark.parametrize(("kind", "cfg", "images", "settings"), CASES)
@pytest.mark.usefixtures("double")
def test_the_prediction_is_that_of_a_whole_pass(
    kind: str, cfg: bool, images: int, settings: str, caplog: pytest.LogCaptureFixture
) -> None:
    loop = Loop(kind, images)
    before = snapshot(loop.model)
    whole = loop.run(guider_for(kind, cfg, reuse=False, **SETTINGS[settings]))
    shared = loop.run(guider_for(kind, cfg, **SETTINGS[settings]))
    assert difference(shared, whole) < BOUND
    assert difference(loop.run(guider_for(kind, cfg, enabled=False)), whole) > 1e-3
    assert snapshot(loop.model) == before
    assert not told(caplog)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.usefixtures("double")
def test_chosen_heads_are_those_of_a_whole_pass(kind: str) -> None:
    loop = Loop(kind)
    blocks = {"adversarial_guidance_blocks": HEADS[kind], "amount": 0.7}
    whole = loop.run(guider_for(kind, reuse=False, **blocks))
    assert difference(loop.run(guider_for(kind, **blocks)), whole) < BOUND
    assert difference(loop.run(guider_for(kind)), whole) > 1e-6


@pytest.mark.usefixtures("double")
def test_contrast_sees_the_picture() -> None:
    loop = Loop("sd3")
    for every in (1, 2):
        whole = loop.run(guider_for("sd3", reuse=False, contrast=0.3, every=every), steps=3)
        assert difference(loop.run(guider_for("sd3", contrast=0.3, every=every), steps=3), whole) < BOUND


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("cfg", [True, False])
def test_what_comes_before_the_first_weakened_layer_runs_once_less(kind: str, cfg: bool) -> None:
    loop = Loop(kind, images=2)
    model = loop.model
    before, after = {
        "sd15": lambda: ([model.conv_in, *model.down_blocks], [model.conv_out, model.up_blocks[3]]),
        "sdxl": lambda: ([model.down_blocks[0], model.mid_block, model.up_blocks[0].resnets[0]], [model.conv_out]),
        "sd3": lambda: ([model.pos_embed, model.transformer_blocks[0]], [model.transformer_blocks[3], model.proj_out]),
        "flux": lambda: ([model.transformer_blocks[0]], [model.single_transformer_blocks[2], model.proj_out]),
    }[kind]()
    plain = [2, 2] if cfg else [2]
    for reuse, rows_before, rows_after in ((False, [*plain, 2], [*plain, 2]), (True, plain, [4, *plain[1:]])):
        with counted_rows() as rows:
            loop.run(guider_for(kind, cfg, reuse=reuse), steps=1)
        assert [rows[module] for module in before] == [rows_before] * len(before)
        assert [rows[module] for module in after] == [rows_after] * len(after)


@pytest.mark.parametrize("kind", MODELS)
def test_no_hook_is_left_after_an_exception(kind: str) -> None:
    loop, guider = Loop(kind), guider_for(kind)
    before = snapshot(loop.model)
    for exception in (ValueError, KeyboardInterrupt):

        def fail(*args: Any, error: type[BaseException] = exception) -> Any:
            raise error("stop")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Sinkhorn, "plain", fail)
            patch.setattr(Sinkhorn, "joint", fail)
            with pytest.raises(exception, match="stop"):
                loop.run(guider, steps=1)
        assert snapshot(loop.model) == before
    assert torch.equal(loop.run(guider, steps=1), loop.run(guider_for(kind), steps=1))


def test_it_holds_no_model_after_a_step() -> None:
    loop, guider = Loop("sd3"), guider_for("sd3")
    loop.run(guider, steps=1)
    model = weakref.ref(loop.model)
    del loop
    gc.collect()
    assert model() is None


# Where nothing can be shared --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("double")
def test_other_tensors_take_whole_passes_and_it_is_said_once_a_picture(caplog: pytest.LogCaptureFixture) -> None:
    loop, guider = Loop("sdxl"), guider_for("sdxl")
    whole = loop.run(guider_for("sdxl", reuse=False))

    class Copies(Loop):
        def call(self, sample: Tensor, timestep: Tensor, uncond: bool) -> dict[str, Any]:
            return super().call(sample.clone(), timestep, uncond)

    loop.__class__ = Copies
    for pictures in (1, 2):
        with counted_rows() as rows:
            assert difference(loop.run(guider), whole) < BOUND
        # The first step still tries.
        assert rows[loop.model.conv_out] == [2, *[1] * 5]
        assert told(caplog) == [f"ASAG takes a whole extra pass: {OTHER_INPUTS}"] * pictures
    loop.__class__ = Loop
    with counted_rows() as rows:
        loop.run(guider)
    assert rows[loop.model.conv_out] == [2, 1] * 2


@pytest.mark.usefixtures("double")
def test_a_tensor_that_was_written_to_is_another_one(caplog: pytest.LogCaptureFixture) -> None:
    """A loop that adds something to the latents after each batch."""
    loop = Loop("sd15")
    whole = loop.run(guider_for("sd15", cfg=False, reuse=False), after_batch=lambda sample: sample.mul_(1.01))
    shared = loop.run(guider_for("sd15", cfg=False), after_batch=lambda sample: sample.mul_(1.01))
    assert difference(shared, whole) < BOUND
    assert told(caplog) == [f"ASAG takes a whole extra pass: {OTHER_INPUTS}"]


@pytest.mark.usefixtures("double")
def test_what_a_call_gives_beside_tensors_has_to_be_the_same(caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop("sd15")
    strengths = iter([1.0, 1.0, 0.5] * 2)

    class Changing(Loop):
        def call(self, sample: Tensor, timestep: Tensor, uncond: bool) -> dict[str, Any]:
            self.more = {"cross_attention_kwargs": {"scale": next(strengths)}}
            return super().call(sample, timestep, uncond)

    loop.__class__ = Changing
    whole = loop.run(guider_for("sd15", reuse=False), steps=1)
    assert difference(loop.run(guider_for("sd15"), steps=1), whole) < BOUND
    assert told(caplog) == [f"ASAG takes a whole extra pass: {OTHER_INPUTS}"]


@pytest.mark.usefixtures("double")
def test_what_attention_alone_is_given_takes_whole_passes(caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop("sd15", images=2)
    loop.more = {"cross_attention_kwargs": {"ip_adapter_masks": torch.ones(2)}}
    whole = loop.run(guider_for("sd15", reuse=False))
    assert not told(caplog)
    with counted_rows() as rows:
        assert torch.equal(loop.run(guider_for("sd15")), whole)
    assert rows[loop.model.conv_out] == [2] * 6
    assert told(caplog) == [f"ASAG takes a whole extra pass: {OPTIONS}"]


@pytest.mark.usefixtures("double")
def test_a_compiled_model_takes_whole_passes(caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop("sd3")
    whole, model = loop.run(guider_for("sd3", reuse=False)), loop.model
    loop.model = torch.compile(model, backend="eager")
    before = snapshot(model)
    assert difference(loop.run(guider_for("sd3")), whole) < BOUND
    assert told(caplog) == [f"ASAG takes a whole extra pass: {COMPILED}"]
    assert snapshot(model) == before


@pytest.mark.usefixtures("double")
def test_a_controlnets_residuals_are_made_for_each_batch(caplog: pytest.LogCaptureFixture) -> None:
    unet = sdxl_unet()
    given = modular_inputs(control_image=normal(1, 3, 128, 128, seed=8).sigmoid())
    pictures = []
    for reuse in (False, True):
        guider = AdversarialSinkhornAttentionGuidance(4.0, reuse=reuse)
        pipe = modular_pipe(guider, unet=unet, controlnet=controlnet(unet))
        pictures.append(pipe(**given, output="latents"))
    assert difference(pictures[1], pictures[0]) < 1e-8
    assert told(caplog) == [f"ASAG takes a whole extra pass: {OTHER_INPUTS}"]


@pytest.mark.usefixtures("double")
def test_diffusers_own_loop_shares() -> None:
    unet = sdxl_unet()
    pictures, made = [], []
    for reuse in (False, True):
        pipe = modular_pipe(AdversarialSinkhornAttentionGuidance(4.0, reuse=reuse), unet=unet)
        with counted_rows() as rows:
            pictures.append(pipe(**modular_inputs(), output="latents"))
        made.append((rows[unet.conv_in], rows[unet.conv_out]))
    assert difference(pictures[1], pictures[0]) < 1e-8
    assert made == [([2] * 6, [2] * 6), ([2] * 4, [4, 2] * 2)]


@torch.no_grad()
@pytest.mark.usefixtures("double")
def test_diffusers_own_loop_of_sd3_shares_though_it_expands_the_timestep_for_each_batch() -> None:
    model, predicted, made = sd3_transformer(), [], []
    for reuse in (False, True):
        given = {"latents": normal(1, 4, 8, 12), "joint_attention_kwargs": None, "num_inference_steps": 4}
        state = BlockState(**given, **text_inputs("sd3"))
        components = SimpleNamespace(guider=guider_for("sd3", reuse=reuse), transformer=model)
        with counted_rows() as rows:
            StableDiffusion3LoopDenoiser()(components, state, 0, torch.tensor(500.0))
        predicted.append(state.noise_pred)
        made.append((rows[model.transformer_blocks[0]], rows[model.proj_out]))
    assert difference(predicted[1], predicted[0]) < BOUND
    assert made == [([1, 1, 1], [1, 1, 1]), ([1, 1], [2, 1])]
