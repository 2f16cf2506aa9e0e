"""What `python -m asag train --data FOLDER` trains, on what, and how."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from asag.lab.embedded.source import Source
from asag.lab.embedded.subjects import Subject
from asag.lab.embedded.training import Training, asked_to_end
from asag.lab.renderings import adapters, names, shipped, subjects
from asag.lab.renderings.controlnet import ControlNetSubject, LineSource
from asag.lab.renderings.ip_adapter import IpAdapterSubject, ReferenceSource
from asag.lab.renderings.judge import save_judge
from asag.lab.renderings.judge_training import JudgeTraining, accuracy
from asag.lab.renderings.sheet import CAPTIONS, contact_sheet
from asag.lab.renderings.source import Renderings

_SHEET_SECONDS = 1800


class RenderingsRecipe:
    """The renderings' own; raises FileNotFoundError where the folder doesn't hold them, and BaseError."""

    def __init__(self, args: Namespace) -> None:
        self.args, self.device = args, torch.device(args.device)
        self.renderings = names.read(args.data)
        if args.base is not None:
            adapters.check_base(args.base, self.renderings)
        self._sheet_drawn = 0.0

    def source(self, name: str) -> Source:
        if name == "controlnet":
            return LineSource(self.renderings, self.args.base, self.device)
        if name == "ip-adapter":
            return ReferenceSource(self.renderings, self.args.base, self.device)
        return Renderings(self.renderings, self.device, self.args.half_size)

    def subject(self, name: str) -> Subject:
        if name == "controlnet":
            return ControlNetSubject(self.args.base, self.device, subjects.SNR_LIMIT)
        if name == "ip-adapter":
            return IpAdapterSubject(self.args.base, subjects.SNR_LIMIT)
        return subjects.subject(name, self.device)

    def train_judge(self, folder: Path) -> str | None:
        generator = torch.Generator(self.device).manual_seed(self.args.seed)
        dtype = getattr(torch, self.args.dtype)
        training = JudgeTraining(self.renderings, self.args.classifier_steps, generator, dtype)
        checkpoint = self.args.out / "judge.pt"
        if self.args.resume and checkpoint.exists():
            training.load(checkpoint)
        with asked_to_end() as ended:
            if not training.run(checkpoint, ended):
                return None
        judge = training.judge.cpu().eval()
        save_judge(judge, folder)
        shares = accuracy(judge, self.renderings, self.args.seed + 1).shares()
        return ", ".join(f"{name} {share:.2%}" for name, share in shares.items()) + " of fresh augmented renderings"

    def watch(self, training: Training, out: Path) -> None:
        """Every half an hour a sheet of the first fixed captions with CFG 3, named by the number of pictures seen.

        None of an adapter, which needs more than a caption.
        """
        if self.args.base is not None or training.seconds - self._sheet_drawn < _SHEET_SECONDS:
            return
        self._sheet_drawn = training.seconds
        texts = [text for text in CAPTIONS if self._known(text)]
        if texts:
            pipeline, captions = shipped.fast_pipeline(out / "model"), shipped.Captions(out / "model")
            options: dict[str, Any] = {"guidance_scale": 3.0, "num_inference_steps": shipped.SOLVER_STEPS}
            images = shipped.sample(pipeline, captions, texts, half_size=self.args.half_size, **options)
            contact_sheet(images, texts, out / "sheets" / f"{training.images:09d}.png")

    def _known(self, text: str) -> bool:
        return text in {rendering.name for rendering in self.renderings}
