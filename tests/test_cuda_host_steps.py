"""Guided steps of the hosts on fake CUDA tensors: from a picture's second step on, none waits for the device."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from ldm.modules.diffusionmodules import openaimodel
from torch import Tensor, nn

from asag.hosts.a1111_step import A1111Step
from asag.hosts.diffusers_pass import Passes
from asag.hosts.forge_step import ForgeStep
from asag.hosts.reuse import Reuse
from asag.lab.bench import shapes
from asag.lab.bench.fake_cuda import FakeCuda
from asag.lab.bench.fake_step import step_record, subclasses_of_fake_tensors
from asag.lab.bench.roofline import Record
from asag.lab.bench.step_model import step_model
from asag.models.base import join_heads, split_heads
from asag.models.diffusers_mmdit import FluxTransformer
from asag.models.ldm_unet import LdmUnet
from asag.models.neo_single_stream import NeoKrea
from asag.operators import Sinkhorn
from asag.perturb import choose_layers
from tests.hosts.test_a1111_step import InnerModel
from tests.models.test_ldm_unet import SD15

CUDA = torch.device("cuda")


def waits_of(record: Record) -> list[str]:
    return [f"{op.waits} at {op.site}" for op in record.waits]


def unet() -> nn.Module:
    return openaimodel.UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=32, use_spatial_transformer=True, num_res_blocks=2,
        context_dim=[24], legacy=False, use_checkpoint=False, **SD15,
    ).eval()  # fmt: skip


def second_of(cuda: FakeCuda, step: Callable[[], Any]) -> Record:
    """What the second of two such steps does."""
    with subclasses_of_fake_tensors(), CUDA:
        with cuda.recording():
            step()
        with cuda.recording() as record:
            step()
    return record


@pytest.mark.parametrize("batched", [True, False], ids=["one call", "calls"])
def test_a_step_of_automatic1111(batched: bool) -> None:
    with FakeCuda() as cuda:
        with CUDA:
            model = InnerModel(unet())
        layers, reuse = choose_layers(model.unet, LdmUnet(), "mid"), Reuse(True)

        def step() -> None:
            denoiser = SimpleNamespace(inner_model=model)
            guided = A1111Step(denoiser, 1.5, 2, 2, model.unet, layers, LdmUnet(), Sinkhorn(), reuse)
            x, text, sigma = torch.empty(4, 4, 16, 16), torch.empty(4, 7, 24), torch.ones(4)
            for rows in [slice(0, 4)] if batched else [slice(0, 2), slice(2, 4)]:
                model(x[rows], sigma[rows], cond={"c_crossattn": [text[rows]]})
            guided.remove()
            guided.predict(whole_calls=False)

        record = second_of(cuda, step)
    assert reuse.shared == 2
    assert waits_of(record) == []


class ForgeNetwork(nn.Module):
    """The double of Forge's model: its arguments around a UNet."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = unet()

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor, transformer_options: Any, control: Any) -> Tensor:
        prediction: Tensor = self.unet(x, timestep, context=context)
        return prediction


class ForgeFamily(LdmUnet):
    def stages(self, model: Any) -> Any:
        return super().stages(model.unet)


@pytest.mark.parametrize("parts", [1, 2], ids=["plain", "AND"])
def test_a_step_of_forge(parts: int) -> None:
    with FakeCuda() as cuda:
        with CUDA:
            network = ForgeNetwork()
        layers, reuse = choose_layers(network.unet, LdmUnet(), "mid"), Reuse(True)

        def host(conds: list[dict[str, Any]], x: Tensor) -> Tensor:
            for cond in conds:
                options = {"cond_or_uncond": [cond["kind"]]}
                out = network(x, x.new_ones(len(x)), context=cond["text"], transformer_options=options, control=None)
            return out

        def step() -> None:
            x, text = torch.empty(2, 4, 16, 16), torch.empty(2, 7, 24)
            conds = [{"kind": 0, "text": text} for _ in range(parts)]
            guided = ForgeStep(network, x, 1.5, layers, ForgeFamily(), Sinkhorn(), reuse, 7.0)
            host([{"kind": 1, "text": text}, *conds], x)
            guided.remove()
            guided.predict(lambda given: host(given, x), conds)

        record = second_of(cuda, step)
    assert reuse.shared == 2
    assert waits_of(record) == []


class KreaAttention(nn.Module):
    """The double of Krea 2's: two heads, and the host's function."""

    def forward(self, x: Tensor, freqs: Tensor) -> Tensor:
        heads = split_heads(x, 2)
        found: Tensor = sys.modules["backend.nn.krea"].attention_function(heads, heads, heads, 2, skip_reshape=True)
        return found


class KreaBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = KreaAttention()

    def forward(self, x: Tensor, freqs: Tensor) -> Tensor:
        attended: Tensor = self.attn(x, freqs)
        return x + attended


class SingleStreamDiT(nn.Module):
    """The double of Krea 2 with an image of reference: its blocks get text, reference and image."""

    patch = 2

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.last = nn.ModuleList([KreaBlock() for _ in range(4)]), nn.Identity()

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor, transformer_options: Any, control: Any) -> Tensor:
        image = nn.functional.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)
        hidden = torch.cat([context, image, image], dim=1)
        freqs = torch.empty(1, 1, hidden.shape[1], 4, 2, 2)
        for block in self.blocks:
            hidden = block(hidden, freqs)
        out = self.last(hidden)[:, -image.shape[1] :].transpose(1, 2).unflatten(2, (x.shape[2] // 2, -1))
        return nn.functional.pixel_shuffle(out, 2)


def test_krea_2_with_an_image_of_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    home: Any = ModuleType("backend.nn.krea")
    home.attention_function = lambda query, key, value, heads, **_: join_heads(
        nn.functional.scaled_dot_product_attention(query, key, value)
    )
    monkeypatch.setitem(sys.modules, "backend.nn.krea", home)
    with FakeCuda() as cuda:
        network = SingleStreamDiT()
        layers, reuse = choose_layers(network, NeoKrea(), "layer.1-3"), Reuse(True)

        def step() -> None:
            x, text = torch.empty(2, 4, 16, 16), torch.empty(2, 7, 16)
            guided = ForgeStep(network, x, 1.5, layers, NeoKrea(), Sinkhorn(), reuse, 7.0)

            def host(kind: int) -> Tensor:
                options = {"cond_or_uncond": [kind]}
                return network(x, x.new_ones(len(x)), context=text, transformer_options=options, control=None)

            host(1)
            host(0)
            guided.remove()
            guided.predict(lambda _: host(0), [{"kind": 0, "text": text}])

        record = second_of(cuda, step)
    assert reuse.shared == 2
    assert waits_of(record) == []


@pytest.mark.parametrize(
    "settings", [{}, {"contrast": 0.5}, {"rescale": 0.5}, {"every": 2, "contrast": 0.5}, {"reuse": False}], ids=str
)
@pytest.mark.parametrize("family", ["sd15", "sd3"])
def test_a_step_of_diffusers(family: str, settings: dict[str, Any]) -> None:
    with FakeCuda() as cuda:
        case = next(each for each in shapes.STEPS if each.family == family)
        denoiser = step_model(case, CUDA, quick=True)
        if family == "sd15":
            # A bare number, as pipelines give it.
            denoiser.given["timestep"] = denoiser.given["timestep"][0]
        record = step_record(cuda, denoiser, settings)
    assert waits_of(record) == []


def test_flux_tells_a_call_for_its_negative_prompt_by_the_schedulers_count() -> None:
    scheduler = SimpleNamespace(step_index=0)
    passes = Passes(SimpleNamespace(scheduler=scheduler), FluxTransformer(), "paper")
    with FakeCuda() as cuda:
        given = {"hidden_states": torch.empty(1, 16, 8, device="cuda"), "timestep": torch.empty(1, device="cuda")}
        with cuda.recording() as record:
            found = [passes.repeats_step((), dict(given), 0.0) for _ in range(2)]
            scheduler.step_index = 1
            found.append(passes.repeats_step((), dict(given), 0.0))
    assert found == [False, True, False]
    assert waits_of(record) == []
