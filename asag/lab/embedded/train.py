"""`python -m asag train`: trains the classifier and a model (UNet or MMDiT) from a seed and exports the folder.

Checkpoints are written every two minutes and `--resume` goes on from the last one, bit for bit where the
budget is `--images`. A budget of `--minutes` ends on time on any machine, but how many pictures fit is
then the machine's affair.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from safetensors.torch import save_file

from asag.lab import arguments
from asag.lab.embedded import drawings
from asag.lab.embedded.architecture import Conditions, token_rows
from asag.lab.embedded.classifier import accuracy, train_classifier
from asag.lab.embedded.subjects import SUBJECTS, Subject

_WARM_UP_STEPS = 200
_DECAY_SHARE = 0.45  # of the budget: the learning rate falls to 0 over this last part
_EMA_DECAY = 0.999
_NULL_SHARE = 0.12  # captions dropped, so that the model also learns to sample without one
_CHECKPOINT_SECONDS = 120
_LOG_STEPS = 50


def learning_rate(peak: float, step: int, progress: float) -> float:
    """Warm-up by steps, then constant, then a straight fall to 0; progress is the share of budget used."""
    return peak * min(1.0, (step + 1) / _WARM_UP_STEPS, max(0.0, (1 - progress) / _DECAY_SHARE))


class Training:
    """A model's training state: weights, their running average, optimiser, random generator, counters."""

    def __init__(self, seed: int, device: torch.device, subject: Subject) -> None:
        torch.manual_seed(seed)
        self.subject = subject
        self.model = subject.new().to(device)
        self.conditions = Conditions().to(device)
        self.parameters = [*self.model.parameters(), *self.conditions.parameters()]
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        options: dict[str, Any] = {"betas": (0.9, 0.99), "weight_decay": 0.0, "fused": True}
        self.optimiser = torch.optim.AdamW(self.parameters, lr=0.0, **options)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.step, self.images, self.seconds = 0, 0, 0.0

    def loss(self, batch: int) -> torch.Tensor:
        """Mean squared error of the velocity on fresh drawings; timesteps spread evenly over the batch."""
        generator, device = self.generator, self.generator.device
        images, labels = drawings.draw(batch, generator)
        clean = drawings.to_latents(images)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        u = torch.rand(2, batch, generator=generator, device=device)
        task = self.subject.task(clean, noise, (torch.arange(batch, device=device) + u[0]) / batch)
        tokens = self.conditions.table()[token_rows(labels, u[1] < _NULL_SHARE)]
        return F.mse_loss(self.subject.predict(self.model, task, tokens), task.target)

    def update(self, batch: int, rate: float) -> float:
        """One optimiser step; returns the loss."""
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
        return loss.item()

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

    def averaged(self) -> tuple[ModelMixin, Conditions]:
        """Copies of the model and the condition tokens that hold the averaged weights."""
        model, conditions = self.subject.new(), Conditions()
        with torch.no_grad():
            targets = [*model.parameters(), *conditions.parameters()]
            torch._foreach_copy_(targets, self.average)
        return model, conditions


def export(training: Training, folder: Path) -> None:
    """Model, scheduler and condition table in half precision, in the layout of diffusers' save_pretrained."""
    model, conditions = training.averaged()
    training.subject.save(model.half(), folder)
    save_file({"table": conditions.table().detach().half()}, folder / "conditions.safetensors")


def train_model(training: Training, out: Path, *, batch: int, peak: float, images: int = 0, minutes: float = 0) -> None:
    """Runs until the budget is used: `images` pictures where not 0, else `minutes` over all resumed runs."""
    started = time.monotonic() - training.seconds
    saved, losses = training.seconds, []
    while True:
        training.seconds = time.monotonic() - started
        progress = training.images / images if images else training.seconds / (60 * minutes)
        if progress >= 1:
            break
        losses.append(training.update(batch, learning_rate(peak, training.step, progress)))
        if training.step % _LOG_STEPS == 0:
            row = {
                "step": training.step,
                "images": training.images,
                "seconds": round(training.seconds),
                "loss": round(sum(losses) / len(losses), 5),
                "progress": round(progress, 4),
            }
            losses.clear()
            with (out / "loss.jsonl").open("a") as log:
                print(json.dumps(row), file=log)
        if training.seconds - saved > _CHECKPOINT_SECONDS:
            saved = training.seconds
            training.save(out / "checkpoint.pt")
            export(training, out / "model")
    training.save(out / "checkpoint.pt")
    export(training, out / "model")


def main(argv: list[str] | None = None) -> int:
    args = arguments.train(argv)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    model = args.out / "model"
    model.mkdir(parents=True, exist_ok=True)
    judge = model / "classifier.safetensors"
    if "classifier" in args.parts and not (args.resume and judge.exists()):
        torch.manual_seed(args.seed)
        generator = torch.Generator(device).manual_seed(args.seed)
        classifier = train_classifier(args.classifier_steps, generator).cpu()
        save_file(classifier.state_dict(), judge)
        right = accuracy(classifier, 2000, args.seed + 1)
        print(f"classifier: {right:.2%} of 2000 fresh drawings exactly right")
    for name in (name for name in SUBJECTS if name in args.parts):
        training = Training(args.seed, device, SUBJECTS[name]())
        if args.resume and (args.out / "checkpoint.pt").exists():
            training.load(args.out / "checkpoint.pt")
        options = {"batch": args.batch, "peak": args.rate, "images": args.images or 0, "minutes": args.minutes}
        train_model(training, args.out, **options)
        print(f"{name}: {training.images} pictures in {training.seconds / 60:.1f} minutes, exported to {model}")
    return 0
