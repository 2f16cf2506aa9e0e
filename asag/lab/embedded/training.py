"""A model's training, whatever its pictures: its state, one step, checkpoints and export."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import ModelMixin
from torch import nn

from asag.lab.embedded.muon import Muon
from asag.lab.embedded.source import Source
from asag.lab.embedded.subjects import Subject

_WARM_UP_STEPS = 200
_DECAY_SHARE = 0.45  # of the budget: the learning rate falls to 0 over this last part
_EMA_DECAY = 0.999
# What leads into a model and out of it is no map between features, and Muon does it no good.
_BORDERS = ("conv_in", "conv_out", "pos_embed", "context_embedder", "proj_out")


class Way(NamedTuple):
    """How a model is trained: dtype of the forward pass; is it compiled; does Muon take its matrices."""

    dtype: torch.dtype = torch.float32
    compiled: bool = False
    muon: bool = False


def learning_rate(peak: float, step: int, progress: float) -> float:
    """Warm-up by steps, then constant, then a straight fall to 0; progress is the share of budget used."""
    return peak * min(1.0, (step + 1) / _WARM_UP_STEPS, max(0.0, (1 - progress) / _DECAY_SHARE))


@contextlib.contextmanager
def asked_to_end() -> Iterator[list[int]]:
    """A list that holds the signal once SIGTERM has come."""
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before)


class Training:
    """A model's training state: weights, their running average, optimiser, random generator, counters."""

    def __init__(
        self, seed: int, device: torch.device, subject: Subject, source: Source, way: Way | None = None
    ) -> None:
        torch.manual_seed(seed)
        self.subject, self.source, self.way = subject, source, way or Way()
        self.model = subject.new().to(device)
        self.conditions = source.conditions().to(device)
        self.parameters = _trained(self.model, self.conditions)
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.optimiser = self._optimiser()
        self.generator = torch.Generator(device).manual_seed(seed)
        self.step, self.images, self.seconds = 0, 0, 0.0
        self._forward = torch.compile(self.model) if self.way.compiled else self.model

    def _optimiser(self) -> torch.optim.Optimizer:
        if not self.way.muon:
            options: dict[str, Any] = {"betas": (0.9, 0.99), "weight_decay": 0.0, "fused": True}
            return torch.optim.AdamW(self.parameters, lr=0.0, **options)
        matrices = [
            parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and parameter.ndim > 1 and not name.startswith(_BORDERS)
        ]
        taken = set(map(id, matrices))
        return Muon(matrices, [parameter for parameter in self.parameters if id(parameter) not in taken])

    def loss(self, batch: int) -> torch.Tensor:
        """Mean squared error of the velocity on fresh pictures; timesteps spread evenly over the batch."""
        generator, device = self.generator, self.generator.device
        clean, labels = self.source.draw(batch, generator)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        u = torch.rand(2, batch, generator=generator, device=device)
        task = self.subject.task(clean, noise, (torch.arange(batch, device=device) + u[0]) / batch)
        tokens = self.source.tokens(self.conditions, labels, u[1])
        narrow = self.way.dtype != torch.float32
        with torch.autocast(device.type, self.way.dtype) if narrow else contextlib.nullcontext():
            predicted = self.subject.predict(self._forward, task, tokens)
        errors = (predicted.float() - task.target).square().flatten(1).mean(1)
        return (task.weight * errors).mean()

    def update(self, batch: int, rate: float) -> torch.Tensor:
        """One optimiser step; returns the loss, a number on the device, so that nothing waits for it."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss = self.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        self.images += batch
        # A short horizon at first, or the average would keep remembering the random start.
        decay = min(_EMA_DECAY, self.step / (self.step + 10))
        torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.parameters], 1 - decay)
        return loss.detach()

    def save(self, path: Path) -> None:
        """Atomically, so that a run killed in the middle of it keeps its last checkpoint."""
        state = {
            "model": self.model.state_dict(),
            "conditions": self.conditions.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "counters": (self.step, self.images, self.seconds),
        }
        torch.save(state, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)

    def load(self, path: Path) -> None:
        state: dict[str, Any] = torch.load(path, map_location=self.generator.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.conditions.load_state_dict(state["conditions"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average = state["average"]
        self.generator.set_state(state["generator"].cpu())
        self.step, self.images, self.seconds = state["counters"]

    def averaged(self) -> tuple[ModelMixin, nn.Module]:
        """Copies of the model and the condition tokens that hold the averaged weights."""
        model, conditions = self.subject.new(), self.source.conditions()
        with torch.no_grad():
            targets: list[torch.Tensor] = [*_trained(model, conditions)]
            torch._foreach_copy_(targets, [value.to("cpu") for value in self.average])
        return model, conditions

    def export(self, folder: Path) -> None:
        """Model, scheduler and condition tokens in half precision, in the layout of diffusers' save_pretrained."""
        model, conditions = self.averaged()
        self.subject.save(model.half(), folder)
        self.source.save(conditions, folder)


def _trained(*modules: nn.Module) -> list[nn.Parameter]:
    """All but what is frozen, in a fixed order."""
    return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
