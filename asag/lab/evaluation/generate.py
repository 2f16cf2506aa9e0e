"""Images from items: each depends on its prompt, its seed and the settings, however it is batched or shared out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from asag.hosts.diffusers_pipeline import asag_guidance
from asag.lab.evaluation.plan import EvaluationError, Item, Method, Sampling, parts
from asag.lab.evaluation.store import Store


@lru_cache(maxsize=1)
def load(folder: Path, dtype: str, device: str) -> Any:
    """The pipeline in a folder, kept until another one is asked for; nothing is downloaded.

    Raises EvaluationError where the folder holds no pipeline or the device isn't there.
    """
    if not (folder / "model_index.json").is_file():
        raise EvaluationError(f"pipeline: {folder}; allowed: a folder with a model_index.json, as diffusers saves it")
    try:
        pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, dtype), local_files_only=True)
    except (OSError, ValueError, AttributeError) as error:
        raise EvaluationError(f"pipeline: {folder}: {error}; allowed: a whole diffusers pipeline") from error
    # Black pictures and watermarks would be measured too, the latter only where a certain package is installed.
    for part in ("safety_checker", "watermark"):
        if getattr(pipe, part, None) is not None:
            setattr(pipe, part, None)
    pipe.set_progress_bar_config(disable=True)
    try:
        return pipe.to(device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        raise EvaluationError(f"device: {device!r}: {error}; allowed: a device of this machine") from error


def make(pipe: Any, sampling: Sampling, method: Method, batch: Sequence[Item]) -> list[Image.Image]:
    """One image for each item, in order.

    Each has a generator of its own, on the CPU, so that its noise is the same in any batch and on any device. Within a
    batch rows don't mix, but a matrix product may round otherwise for another number of rows.

    Raises what asag_guidance raises.
    """
    given: dict[str, Any] = {"prompt": [item.prompt for item in batch], "num_inference_steps": sampling.steps}
    if sampling.guidance_scale is not None:
        given["guidance_scale"] = sampling.guidance_scale
    if sampling.size is not None:
        given["width"], given["height"] = sampling.size
    generators = [torch.Generator().manual_seed(item.noise_seed) for item in batch]
    with nullcontext() if method.settings is None else asag_guidance(pipe, **method.settings):
        images: list[Image.Image] = pipe(**given, generator=generators).images
    return images


@dataclass(frozen=True)
class Job:
    """What a worker needs besides its items. The folders are absolute, and the same for all workers."""

    pipeline: Path
    out: Path
    sampling: Sampling
    methods: tuple[Method, ...]
    batch: int
    device: str

    def __call__(self, shard: Sequence[Item]) -> int:
        """Make and store what the shard lacks, for all methods; returns how many images that were.

        Batches are `batch` items counted from the shard's start, less those whose image is there already.
        """
        store, made = Store(self.out), 0
        for part in parts(shard, self.batch):
            for method in self.methods:
                missing = store.missing(method, part)
                if missing:
                    pipe = load(self.pipeline, self.sampling.dtype, self.device)
                    for item, image in zip(missing, make(pipe, self.sampling, method, missing), strict=True):
                        store.write(method, item, image)
                    made += len(missing)
        return made
