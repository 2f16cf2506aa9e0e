"""A run: which pictures a cell is made of, and how they are sampled on the embedded models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asag.hosts.diffusers_pipeline import asag_guidance
from asag.lab.embedded import drawings, shipped, shipped_mmdit
from asag.settings import AsagSettings
from asag.trace import Trace

PART = 250  # pictures that are sampled and kept together; a run can stop between two of them
_BATCH = 25  # more is no faster on a CPU
MODELS = {"unet": shipped, "mmdit": shipped_mmdit}
CAPTIONS_SEED = 20_000  # the captions are the same for every run and seed, as those of a benchmark are
SOLVER = "DPM++ 2M"


class PartError(RuntimeError):
    """A part came out with values that aren't numbers."""


@dataclass(frozen=True)
class Run:
    """What determines the pictures of a cell, without the noise: model (unet, mmdit), whether captions are given,
    steps of DPM-Solver++ (2M), classifier-free guidance scale (1: none), and the settings of the extension as sorted
    pairs."""

    model: str
    conditional: bool
    steps: int
    guidance_scale: float = 1.0
    settings: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(
        cls,
        model: str,
        conditional: bool,
        settings: Mapping[str, Any] | None = None,
        steps: int | None = None,
        guidance_scale: float = 1.0,
    ) -> Run:
        """With the model's own number of steps unless `steps` is given; 2 and 2.0 make the same run.

        Raises SettingsError, naming every unknown or bad setting.
        """
        steps = steps or MODELS[model].SOLVER_STEPS
        parsed = AsagSettings.from_mapping(settings or {})
        # A setting's earlier name stays, with what was given: so it stands in lines that were measured before.
        pairs = tuple((name, getattr(parsed, name, given)) for name, given in sorted((settings or {}).items()))
        return cls(model, conditional, steps, guidance_scale, pairs)

    @property
    def condition(self) -> str:
        return "conditional" if self.conditional else "unconditional"

    @property
    def key(self) -> str:
        """A name for files, the same on every machine; another one for other weights and other defaults."""
        parsed = AsagSettings.from_mapping(dict(self.settings))
        changing = [each.name for each in fields(parsed) if each.metadata["option"].changes_picture]
        settings = {name: getattr(parsed, name) for name in changing} if self.settings else {}
        base = [SOLVER, weights(self.model), self.conditional, self.guidance_scale, self.steps]
        named = json.dumps([*base, settings], sort_keys=True)
        method = settings.get("method", "plain")
        return f"{self.model}-{method}-{hashlib.sha256(named.encode()).hexdigest()[:12]}"


@cache
def weights(model: str) -> str:
    """A digest of the files of a model and of the classifier that judges its pictures."""
    folder = MODELS[model].MODEL
    files = {*folder.rglob("*.safetensors"), *folder.rglob("*.json"), *shipped.MODEL.glob("*.safetensors")}
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.relative_to(folder.parent)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class Part(NamedTuple):
    """Of the pictures of noise seed `seed` the `pictures` from number `number * PART` on; `captions` is their seed."""

    seed: int
    number: int
    pictures: int = PART
    captions: int = CAPTIONS_SEED

    def labels(self) -> Tensor:
        """(count,2,2): what the pictures are asked for."""
        first = self.number * PART
        return captions(first + self.pictures, self.captions)[first:]


def trained() -> list[str]:
    """The models that are there; the others have to be trained first."""
    return [name for name, module in MODELS.items() if module.MODEL.exists()]


def captions(count: int, seed: int = CAPTIONS_SEED) -> Tensor:
    """Labels (count,2,2) of the captions that pictures 0 to count - 1 are asked for, whatever their noise."""
    return drawings.draw(count, torch.Generator().manual_seed(seed)).labels


class Sampler:
    """Samples parts of runs; keeps the pipelines it has loaded."""

    def __init__(self) -> None:
        self.pipelines: dict[str, Any] = {}

    def pipeline(self, model: str) -> Any:
        if model not in self.pipelines:
            pipeline = MODELS[model].load_pipeline()
            pipeline.scheduler = MODELS[model].solver_of(pipeline.scheduler)
            self.pipelines[model] = pipeline
        return self.pipelines[model]

    def sample(self, run: Run, part: Part, labels: Tensor) -> Tensor:
        """Pictures (B,3,32,32) for labels (B,2,2), from noise that depends on the part alone, so runs are paired.

        Raises:
            PartError: naming the run and the part, where a picture has values that aren't finite.
        """
        noise = shipped.start_noise(len(labels), part.seed * 1000 + part.number)
        batches = zip(labels.split(_BATCH), noise.split(_BATCH), strict=True)
        images = torch.cat([self.batch(run, *batch)[0] for batch in batches])
        if not images.isfinite().all():
            raise PartError(f"run {run.key}, seed {part.seed}, part {part.number}: values that aren't finite")
        return images

    def batch(self, run: Run, labels: Tensor, noise: Tensor, **settings: Any) -> tuple[Tensor, Trace | None]:
        """Pictures (B,3,32,32) from noise (B,12,16,16), and the guidance's trace, if `settings` ask for figures.

        `settings` are further ones of the extension; labels are (B,2,2), and ignored without captions.
        """
        pipeline, folder = self.pipeline(run.model), MODELS[run.model].MODEL
        null = shipped.null_embeds(len(noise), folder)
        tokens = shipped.embed_labels(labels, folder) if run.conditional else null
        options = {"guidance_scale": run.guidance_scale, "num_inference_steps": run.steps}
        given = {**dict(run.settings), **settings}
        with asag_guidance(pipeline, **given) if given else nullcontext() as trace:
            return shipped.sample_from(pipeline, tokens, null, noise, **options), trace
