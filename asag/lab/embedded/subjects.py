"""What training must know of each model: how to build it, what it predicts from what, and how it is saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from diffusers import DDIMScheduler, ModelMixin

from asag.lab.embedded.architecture import new_scheduler, new_unet
from asag.lab.embedded.architecture_mmdit import SHIFT, new_flow_scheduler, new_transformer, pooled


class Task(NamedTuple):
    """What the model is given and what it should say: latents (B,C,H,W), timesteps (B,), latents; a weight for each."""

    noisy: torch.Tensor
    time: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor


class Subject(Protocol):
    """One architecture that can be trained."""

    def new(self) -> ModelMixin:
        """An untrained model on the CPU."""

    def task(self, clean: torch.Tensor, noise: torch.Tensor, position: torch.Tensor) -> Task:
        """Mix clean latents with noise, both (B,C,H,W), at positions (B,) in [0,1) of the noise schedule."""

    def predict(self, model: ModelMixin, task: Task, given: Any) -> torch.Tensor:
        """What the model says, (B,C,H,W), given condition tokens (B,T,D), or what else the source gives."""

    def save(self, model: ModelMixin, folder: Path) -> None:
        """Model and scheduler, in the layout of diffusers' save_pretrained."""


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]


class UNetSubject:
    """Velocity on the UNet's 1000 discrete timesteps; `snr_limit` is γ of min-SNR weighting (Hang et al. 2023)."""

    def __init__(
        self,
        build: Callable[[], ModelMixin] = new_unet,
        schedule: Callable[[], DDIMScheduler] = new_scheduler,
        snr_limit: float | None = None,
    ) -> None:
        self._build, self._schedule, self._snr_limit = build, schedule, snr_limit
        self.alpha_bar = schedule().alphas_cumprod

    def new(self) -> ModelMixin:
        return self._build().to(memory_format=torch.channels_last)

    def task(self, clean: torch.Tensor, noise: torch.Tensor, position: torch.Tensor) -> Task:
        steps = (position * len(self.alpha_bar)).long()
        alpha_bar = self.alpha_bar.to(clean.device)[steps]
        alpha, sigma = _wide(alpha_bar.sqrt()), _wide((1 - alpha_bar).sqrt())
        noisy = (alpha * clean + sigma * noise).contiguous(memory_format=torch.channels_last)
        return Task(noisy, steps, alpha * noise - sigma * clean, self._weight(alpha_bar))

    def _weight(self, alpha_bar: torch.Tensor) -> torch.Tensor:
        if self._snr_limit is None:
            return torch.ones_like(alpha_bar)
        # For velocity the weight is min(SNR, γ) / (SNR + 1).
        return torch.minimum(alpha_bar, self._snr_limit * (1 - alpha_bar))

    def predict(self, model: ModelMixin, task: Task, given: Any) -> torch.Tensor:
        predicted: torch.Tensor = model(task.noisy, task.time, given, return_dict=False)[0]
        return predicted

    def save(self, model: ModelMixin, folder: Path) -> None:
        model.save_pretrained(folder / "unet")
        self._schedule().save_pretrained(folder / "scheduler")


class MMDiTSubject:
    """Rectified flow (Esser et al. 2024): straight paths, and as velocity what leads from the picture to the noise."""

    def __init__(self, build: Callable[[], ModelMixin] = new_transformer, shift: float = SHIFT) -> None:
        self._build, self._shift = build, shift

    def new(self) -> ModelMixin:
        return self._build()

    def task(self, clean: torch.Tensor, noise: torch.Tensor, position: torch.Tensor) -> Task:
        sigma = self._shift * position / (1 + (self._shift - 1) * position)
        noisy = torch.lerp(clean, noise, _wide(sigma))
        return Task(noisy, sigma * 1000, noise - clean, torch.ones_like(sigma))

    def predict(self, model: ModelMixin, task: Task, given: Any) -> torch.Tensor:
        predicted: torch.Tensor = model(task.noisy, given, pooled(given), task.time, return_dict=False)[0]
        return predicted

    def save(self, model: ModelMixin, folder: Path) -> None:
        model.save_pretrained(folder / "transformer")
        new_flow_scheduler(self._shift).save_pretrained(folder / "scheduler")


SUBJECTS: dict[str, type[UNetSubject | MMDiTSubject]] = {"unet": UNetSubject, "mmdit": MMDiTSubject}
