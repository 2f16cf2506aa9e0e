"""A model of renderings as the experiments here sample it: by captions, with a solver, beside its judge."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asag.hosts.diffusers_pipeline import asag_guidance
from asag.lab.embedded import shipped as embedded
from asag.lab.renderings import shipped
from asag.lab.renderings.judge import load_judge
from asag.lab.renderings.names import held_out
from research.asag.sampling import PartError

CFG = 3.0


def weights_of(folder: Path) -> str:
    """A digest of a model's files and its judge's."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class Model:
    """The model in a folder with its judge, or with the one that comes with ASAG, both in float32 on a device.
    `half_size`: a UNet that has seen 32x32 pictures only."""

    def __init__(
        self,
        folder: Path,
        half_size: bool = False,
        steps: int = shipped.SOLVER_STEPS,
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> None:
        self.folder, self.half_size, self.steps, self.device = folder, half_size, steps, device
        self.pipeline: Any = shipped.fast_pipeline(folder, device=device)
        self.network: nn.Module = getattr(self.pipeline, "unet", None) or self.pipeline.transformer
        self.captions = shipped.Captions(folder)
        self.judge = load_judge(folder).to(device)
        held = held_out(self.judge.names)
        self.learnt = [name for name in self.judge.names if name not in held]

    @property
    def kind(self) -> str:
        return "mmdit" if hasattr(self.pipeline, "transformer") else "unet"

    @property
    def name(self) -> str:
        """For lines and files."""
        return f"renderings-{self.kind}{'-half' if self.half_size else ''}"

    def weights(self) -> str:
        return weights_of(self.folder)

    def asked(self, count: int, seed: int) -> list[str]:
        """Names that were learnt, in an order of the seed; each again only after all others."""
        generator = torch.Generator().manual_seed(seed)
        rounds = -(-count // len(self.learnt))
        order = torch.cat([torch.randperm(len(self.learnt), generator=generator) for _ in range(rounds)])[:count]
        return [self.learnt[row] for row in order]

    def noise(self, count: int, seed: int) -> Tensor:
        """On the CPU: the same for a seed on every device."""
        return shipped.start_noise(count, seed, self.half_size)

    def sample(self, texts: Sequence[str], noise: Tensor, settings: Mapping[str, Any], cfg: float = CFG) -> Tensor:
        """Pictures (B,3,64,64) in [-1,1], on the CPU, with the extension's settings; without any with CFG alone.

        Raises PartError where a picture has values that aren't finite.
        """
        images, batch = [], shipped.batch_on(self.device)
        for start in range(0, len(texts), batch):
            part = texts[start : start + batch]
            tokens, null = self.captions.embed(part), self.captions.null(len(part))
            options: dict[str, Any] = {"guidance_scale": cfg, "num_inference_steps": self.steps}
            with asag_guidance(self.pipeline, **settings) if settings else nullcontext():
                images.append(
                    embedded.sample_from(self.pipeline, tokens, null, noise[start : start + batch], **options)
                )
        found = torch.cat(images)
        if not found.isfinite().all():
            raise PartError(f"{self.name} {dict(settings)}: values that aren't finite")
        if self.half_size:
            return nn.functional.interpolate(found, scale_factor=2, mode="bilinear", align_corners=False)
        return found
