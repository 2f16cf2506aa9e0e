"""A guided step of a UNet or transformer in its real layout, on fake CUDA tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from asag.hosts.diffusers_pipeline import asag_guidance
from asag.lab.bench.fake_cuda import Answer, FakeCuda, as_fake_subclass, plausible
from asag.lab.bench.roofline import Record
from asag.lab.bench.step_model import StepModel


@contextmanager
def subclasses_of_fake_tensors() -> Iterator[None]:
    """While open, what flows between the stages of a branch may be fake."""
    original = Tensor.as_subclass

    def as_subclass(tensor: Tensor, cls: type[Tensor]) -> Tensor:
        return as_fake_subclass(tensor, cls) if isinstance(tensor, FakeTensor) else original(tensor, cls)

    with mock.patch.object(Tensor, "as_subclass", as_subclass):
        yield


def step_record(
    cuda: FakeCuda, denoiser: StepModel, settings: dict[str, Any] | None, answer: Answer = plausible
) -> Record:
    """One call of the denoiser, guided unless `settings` is None: the second of a picture, since its first looks the
    rows over."""
    with subclasses_of_fake_tensors():
        if settings is None:
            with cuda.recording(answer) as record:
                denoiser.predict()
            return record
        with ExitStack() as guided:
            guided.enter_context(asag_guidance(denoiser.pipeline(), **settings))
            with cuda.recording(answer):
                denoiser.predict()
            with cuda.recording(answer) as record:
                denoiser.predict()
            # At its end the guidance reads what it noted.
            with cuda.recording(answer):
                guided.close()
        return record
