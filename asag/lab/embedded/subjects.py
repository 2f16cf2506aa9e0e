"""What training must know of each model: how to build it, what it predicts from what, and how it is saved."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from diffusers import ModelMixin

from asag.lab.embedded.architecture import new_scheduler, new_unet
from asag.lab.embedded.architecture_mmdit import SHIFT, new_flow_scheduler, new_transformer, pooled


class Task(NamedTuple):
    """What the model is given and what it should say: latents (B,12,16,16), timesteps (B,), latents."""

    noisy: torch.Tensor
    time: torch.Tensor
    target: torch.Tensor


class Subject(Protocol):
    """One architecture that can be trained."""

    def new(self) -> ModelMixin:
        """An untrained model on the CPU."""

    def task(self, clean: torch.Tensor, noise: torch.Tensor, position: torch.Tensor) -> Task:
        """Mix clean latents with noise, both (B,12,16,16), at positions (B,) in [0,1) of the noise schedule."""

    def predict(self, model: ModelMixin, task: Task, tokens: torch.Tensor) -> torch.Tensor:
        """What the model says, (B,12,16,16), given condition tokens (B,3,64)."""

    def save(self, model: ModelMixin, folder: Path) -> None:
        """Model and scheduler, in the layout of diffusers' save_pretrained."""


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]


class UNetSubject:
    """Velocity on the UNet's 1000 discrete timesteps."""

    def __init__(self) -> None:
        self.alpha_bar = new_scheduler().alphas_cumprod

    def new(self) -> ModelMixin:
        return new_unet().to(memory_format=torch.channels_last)

    def task(self, clean: torch.Tensor, noise: torch.Tensor, position: torch.Tensor) -> Task:
        steps = (position * len(self.alpha_bar)).long()
        alpha_bar = _wide(self.alpha_bar.to(clean.device)[steps])
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        noisy = (alpha * clean + sigma * noise).contiguous(memory_format=torch.channels_last)
        return Task(noisy, steps, alpha * noise - sigma * clean)

    def predict(self, model: ModelMixin, task: Task, tokens: torch.Tensor) -> torch.Tensor:
        predicted: torch.Tensor = model(task.noisy, task.time, tokens, return_dict=False)[0]
        return predicted

    def save(self, model: ModelMixin, folder: Path) -> None:
        model.save_pretrained(folder / "unet")
        new_scheduler().save_pretrained(folder / "scheduler")


class MMDiTSubject:
    """Rectified flow (Esser et al. 2024): straight paths, and as velocity what leads from the picture to the noise."""

    def new(self) -> ModelMixin:
        return new_transformer()

    def task(self, clean: torch.Tensor, noise: torch.Tensor, position: torch.Tensor) -> Task:
        sigma = SHIFT * position / (1 + (SHIFT - 1) * position)
        noisy = torch.lerp(clean, noise, _wide(sigma))
        return Task(noisy, sigma * 1000, noise - clean)

    def predict(self, model: ModelMixin, task: Task, tokens: torch.Tensor) -> torch.Tensor:
        predicted: torch.Tensor = model(task.noisy, tokens, pooled(tokens), task.time, return_dict=False)[0]
        return predicted

    def save(self, model: ModelMixin, folder: Path) -> None:
        model.save_pretrained(folder / "transformer")
        new_flow_scheduler().save_pretrained(folder / "scheduler")


SUBJECTS: dict[str, type[UNetSubject | MMDiTSubject]] = {"unet": UNetSubject, "mmdit": MMDiTSubject}
