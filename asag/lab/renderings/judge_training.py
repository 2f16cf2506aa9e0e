"""How the judge is trained, on augmented renderings; a run that was ended goes on from its checkpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from asag.lab.renderings.judge import Judge, Verdict, verdict
from asag.lab.renderings.names import Rendering
from asag.lab.renderings.pictures import Pictures

_BATCH = 64
_RATE = 3e-3
_NOISE = 0.1  # renderings are noiseless; samples are not quite, and must not be judged by that
_CHECKPOINT_SECONDS = 120


class JudgeTraining:
    """A judge of all the renderings on its way through `steps` batches, half of whose pictures are noisy or soft."""

    def __init__(
        self, renderings: Sequence[Rendering], steps: int, generator: torch.Generator, dtype: torch.dtype
    ) -> None:
        self.steps, self.generator, self.dtype, self.step = steps, generator, dtype, 0
        device = generator.device
        self.judge = Judge({rendering.name: rendering.group for rendering in renderings})
        self.judge.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        groups = [self.judge.groups.index(rendering.group) for rendering in renderings]
        self._group_of = torch.tensor(groups, device=device)
        self._pictures = Pictures(renderings, device)
        self.optimiser = torch.optim.AdamW(self.judge.parameters(), lr=_RATE, weight_decay=0.02, fused=True)
        options: dict[str, Any] = {"max_lr": _RATE, "total_steps": steps + 1, "pct_start": 0.1}
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimiser, **options)

    def update(self) -> torch.Tensor:
        """One step; returns the loss."""
        generator, device = self.generator, self.generator.device
        rows = torch.randint(len(self._group_of), (_BATCH,), generator=generator, device=device)
        images = worn(self._pictures.draw(rows, generator), generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
            names, kinds = self.judge(images)
        loss = F.cross_entropy(names.float(), rows, label_smoothing=0.05)
        loss = loss + 0.3 * F.cross_entropy(kinds.float(), self._group_of[rows])
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.schedule.step()
        self.step += 1
        return loss.detach()

    def run(self, checkpoint: Path, ended: Sequence[int] = ()) -> bool:
        """All steps that remain, with a checkpoint now and then; False where `ended` was filled before the last."""
        saved = time.monotonic()
        while self.step < self.steps and not ended:
            self.update()
            if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                self.save(checkpoint)
                saved = time.monotonic()
        self.save(checkpoint)
        return self.step >= self.steps

    def save(self, path: Path) -> None:
        """Atomically."""
        state = {
            "judge": self.judge.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
        }
        torch.save(state, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)

    def load(self, path: Path) -> None:
        state: dict[str, Any] = torch.load(path, map_location=self.generator.device, weights_only=True)
        self.judge.load_state_dict(state["judge"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"].cpu())
        self.step = state["step"]


def worn(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures (B,3,64,64) as a model's samples might be: half of them noisy, a quarter at half the resolution."""
    u = torch.rand(2, len(images), 1, 1, 1, generator=generator, device=generator.device)
    noise = torch.randn(images.shape, generator=generator, device=generator.device)
    soft = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear", align_corners=False)
    images = torch.where(u[1] < 0.25, soft, images)
    return images + _NOISE * (2 * u[0] - 1).clamp(min=0) * noise


@torch.no_grad()
def accuracy(judge: Judge, renderings: Sequence[Rendering], seed: int, rounds: int = 2) -> Verdict:
    """Verdicts on fresh augmented pictures of each rendering, `rounds` of each."""
    generator = torch.Generator().manual_seed(seed)
    pictures = Pictures(renderings, torch.device("cpu"))
    rows = torch.arange(len(renderings)).repeat(rounds)
    images = torch.cat([pictures.draw(part, generator) for part in rows.split(128)])
    return verdict(judge, images, [renderings[row].name for row in rows], judge.names)
