"""A guided step of a UNet or transformer in its real layout, on fake CUDA tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from asag.hosts.diffusers_pipeline import asag_guidance
from asag.lab.bench import models
from asag.lab.bench.fake_cuda import FakeCuda, as_fake_subclass, plausible
from asag.lab.bench.roofline import Record


@dataclass(frozen=True)
class StepCase:
    """`height` and `width` are those of the latent image; `batch` images."""

    family: str
    height: int
    width: int
    batch: int = 1
    blocks: str = "mid"

    @property
    def name(self) -> str:
        several = f"-batch{self.batch}" if self.batch > 1 else ""
        return f"{self.family}-{self.height}x{self.width}-{self.blocks}{several}"


class FakeDenoiser(NamedTuple):
    model: nn.Module
    rows: Tensor
    given: dict[str, Any]

    @property
    def weight_bytes(self) -> int:
        return sum(each.numel() * each.element_size() for each in self.model.parameters())


@contextmanager
def subclasses_of_fake_tensors() -> Iterator[None]:
    """While open, what flows between the stages of a branch may be fake."""
    original = Tensor.as_subclass

    def as_subclass(tensor: Tensor, cls: type[Tensor]) -> Tensor:
        return as_fake_subclass(tensor, cls) if isinstance(tensor, FakeTensor) else original(tensor, cls)

    with mock.patch.object(Tensor, "as_subclass", as_subclass):
        yield


def fake_denoiser(case: StepCase, quick: bool = False) -> FakeDenoiser:
    """A model of real width with half-precision weights, and the arguments of its call with CFG; inside a FakeCuda."""
    size = models.SIZES["quick" if quick else "accelerator"][case.family]
    build = {"sd15": models.sd15_unet, "sdxl": models.sdxl_unet, "sd3": models.sd3_transformer}[case.family]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("cuda"):
            model = build(size).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    count, config = 2 * case.batch, model.config

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="cuda", dtype=torch.float16)

    given: dict[str, Any] = {"timestep": torch.empty(count, device="cuda"), "return_dict": False}
    if case.family == "sd3":
        given["encoder_hidden_states"] = empty(count, 2 * models.TEXT_TOKENS, config.joint_attention_dim)
        given["pooled_projections"] = empty(count, config.pooled_projection_dim)
    else:
        given["encoder_hidden_states"] = empty(count, models.TEXT_TOKENS, config.cross_attention_dim)
    if case.family == "sdxl":
        given["added_cond_kwargs"] = {"text_embeds": empty(count, 1280), "time_ids": empty(count, 6)}
    return FakeDenoiser(model, empty(count, config.in_channels, case.height, case.width), given)


def pipeline_of(model: nn.Module) -> Any:
    pipe = models.pipeline_double(model)
    pipe.scheduler = SimpleNamespace(
        timesteps=list(range(models.STEPS)), config={}, alphas_cumprod=torch.linspace(0.999, 0.01, 1000)
    )
    return pipe


def step_record(cuda: FakeCuda, denoiser: FakeDenoiser, settings: dict[str, Any] | None) -> Record:
    """One call of the denoiser, guided unless `settings` is None: the second of a picture, since its first looks the
    rows over."""
    with subclasses_of_fake_tensors():
        if settings is None:
            with cuda.recording(plausible) as record:
                denoiser.model(denoiser.rows, **denoiser.given)
            return record
        with asag_guidance(pipeline_of(denoiser.model), **settings):
            with cuda.recording(plausible):
                denoiser.model(denoiser.rows, **denoiser.given)
            with cuda.recording(plausible) as record:
                denoiser.model(denoiser.rows, **denoiser.given)
        return record
