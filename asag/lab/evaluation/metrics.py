"""FID, KID, IS and CLIPScore by torchmetrics, and human preference, with weights from a local folder.

Nothing is ever downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from asag.lab.arguments import METRICS
from asag.lab.evaluation import rewards
from asag.lab.evaluation.plan import EvaluationError, Item, Method
from asag.lab.evaluation.store import Store
from asag.lab.evaluation.weights import need

AGAINST_REFERENCE = ("fid", "kid")
OF_INCEPTION = ("fid", "kid", "is")
# What torch-fidelity and torchmetrics would download, under the same names.
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
CLIP = "clip-vit-large-patch14"
CLIP_FILES = ("config.json", "model.safetensors")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
KID_SUBSET = 1000
BATCH = 32


@dataclass(frozen=True)
class Models:
    """What the metrics look through. The first two take uint8 images (B,3,H,W), and give features (B,F) and logits
    (B,classes); `clip` gives torchmetrics its model and processor. None where no metric needs it. `rewards` are
    the models of human preference by their metrics' names."""

    features: nn.Module | None
    logits: nn.Module | None
    clip: Any | None
    rewards: dict[str, rewards.Reward] = field(default_factory=dict)


def check(names: Sequence[str], weights: Path | None, reference: Path | None, images: int) -> None:
    """Raise EvaluationError for what these metrics of so many images lack: a package, weights or reference images.

    Called before images are made: hours later would be too late.
    """
    for name in names:
        if name not in METRICS and not rewards.is_reward(name):
            raise EvaluationError(f"metrics: {name!r}; allowed: {', '.join(METRICS)}, {rewards.PREFIX}FOLDER")
        if rewards.is_reward(name):
            rewards.check(name, weights)
    names = [name for name in names if not rewards.is_reward(name)]
    if not names:
        return
    if any(name in OF_INCEPTION for name in names):
        need(weights, INCEPTION, "torch-fidelity's InceptionV3, which fid, kid and is look through")
        if images < 2:
            raise EvaluationError(f"metrics: {', '.join(names)} of {images} image; allowed: of two or more")
    if "clip" in names:
        for file in CLIP_FILES:
            need(weights, f"{CLIP}/{file}", "openai/clip-vit-large-patch14 as transformers saves it, for clip")
    if any(name in AGAINST_REFERENCE for name in names):
        if reference is None:
            raise EvaluationError("reference: not given; allowed: a folder of real images, for fid and kid")
        if len(pictures(reference)) < 2:
            raise EvaluationError(f"reference: {reference}; allowed: a folder with two images or more")
    try:
        import torchmetrics  # noqa: F401

        if any(name in OF_INCEPTION for name in names):
            import torch_fidelity  # noqa: F401  what torchmetrics' Inception is built on
    except ImportError as error:
        raise EvaluationError(f"metrics: {error}; allowed: pip install sd-webui-asag[evaluate]") from error


def pictures(folder: Path) -> list[Path]:
    """The images anywhere below a folder, in order of their names."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)


def models(names: Sequence[str], weights: Path) -> Models:
    """The models that these metrics need, from the files that `check` looked for.

    Raises EvaluationError where a file isn't what it should be.
    """
    features = logits = pair = None
    if any(name in OF_INCEPTION for name in names):
        from torchmetrics.image.fid import NoTrainInceptionV3

        inception = partial(
            NoTrainInceptionV3, "inception-v3-compat", feature_extractor_weights_path=str(weights / INCEPTION)
        )
        try:
            features, logits = inception(["2048"]), inception(["logits_unbiased"])
        except Exception as error:  # pickle raises anything at all on a damaged file
            raise EvaluationError(f"weights: {weights / INCEPTION}: {error}; allowed: torch-fidelity's file") from error
    if "clip" in names:
        try:
            pair = load_clip(weights / CLIP)
        except Exception as error:  # safetensors has errors of its own
            raise EvaluationError(f"weights: {weights / CLIP}: {error}; allowed: a CLIP model") from error
    preferences = {name: rewards.load(name, weights) for name in names if rewards.is_reward(name)}
    return Models(features, logits, None if pair is None else (lambda: pair), preferences)


def load_clip(folder: Path) -> tuple[nn.Module, Any]:
    """The CLIP model and the processor in a folder, as torchmetrics' CLIPScore calls them."""
    from transformers import CLIPModel, CLIPProcessor

    processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)

    def prepared(text: list[str] | None = None, images: list[Tensor] | None = None, **options: Any) -> Any:
        if text is None:
            return processor(images=images, **options)
        # torchmetrics would cut a long caption's end token off, on which CLIP's feature is read.
        return processor.tokenizer(text, truncation=True, max_length=model.longest, **options)

    model = Clip(CLIPModel.from_pretrained(folder, local_files_only=True).eval())
    return model, prepared


class Clip(nn.Module):
    """CLIP with features as tensors (B,F), which transformers 5 wraps in an output object and torchmetrics doesn't."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model
        self.config: Any = model.config
        self.longest = model.config.text_config.max_position_embeddings

    def get_image_features(self, pixels: Tensor) -> Any:
        found = self.model.get_image_features(pixels)
        return getattr(found, "pooler_output", found)

    def get_text_features(self, tokens: Tensor, mask: Tensor) -> Any:
        found = self.model.get_text_features(tokens, mask)
        return getattr(found, "pooler_output", found)


def measure(
    names: Sequence[str],
    given: Models,
    store: Store,
    methods: Sequence[Method],
    items: Sequence[Item],
    reference: Path | None,
    device: str,
) -> Iterator[dict[str, Any]]:
    """A record for each method and metric: method, metric, value, the number of images, and what else it depends on.

    `spread` is the standard deviation over KID's subsets, IS's ten splits, and the images of a reward. `to_first` is a
    reward's mean difference to the first of the methods, and `to_first_error` its standard error.
    """
    real = pictures(reference) if reference is not None and set(names) & set(AGAINST_REFERENCE) else []
    subset = min(KID_SUBSET, len(real), len(items))
    meters = {name: meter.to(device) for name, meter in _meters(names, given, subset).items()}
    with torch.no_grad():
        for images, _ in _batches(real, real, device):
            for name in set(names) & set(AGAINST_REFERENCE):
                meters[name].update(images, real=True)
        for method in methods:
            paths = [store.path(method, item) for item in items]
            for images, part in _batches(paths, items, device):
                for name, meter in meters.items():
                    if name in AGAINST_REFERENCE:
                        meter.update(images, real=False)
                    elif name == "clip" or rewards.is_reward(name):
                        meter.update(images, [item.prompt for item in part])
                    else:
                        meter.update(images)
            for name, meter in meters.items():
                value, spread = _computed(meter)
                found = {"method": method.name, "metric": name, "value": value, "images": len(items)}
                found |= {"spread": spread} if spread is not None else {}
                found |= {"reference": len(real)} if name in AGAINST_REFERENCE else {}
                found |= {"subset": subset} if name == "kid" else {}
                found |= meter.to_first() if isinstance(meter, rewards.Preference) else {}
                meter.reset()
                yield found


def _meters(names: Sequence[str], given: Models, subset: int) -> dict[str, Any]:
    found: dict[str, Any] = {name: rewards.Preference(model) for name, model in given.rewards.items()}
    others = [name for name in names if name not in found]
    found |= _of_torchmetrics(others, given, subset) if others else {}
    return {name: found[name] for name in names}


def _of_torchmetrics(names: Sequence[str], given: Models, subset: int) -> dict[str, Any]:
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance
    from torchmetrics.multimodal.clip_score import CLIPScore

    of = {
        "fid": lambda: FrechetInceptionDistance(feature=given.features, reset_real_features=False),
        "kid": lambda: KernelInceptionDistance(feature=given.features, reset_real_features=False, subset_size=subset),
        "is": lambda: InceptionScore(feature=given.logits),
        "clip": lambda: CLIPScore(given.clip),
    }
    return {name: of[name]() for name in names}


def _computed(meter: Any) -> tuple[float, float | None]:
    """Value and spread. KID and IS draw at random which images they take together: always the same ones here."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = meter.compute()
    return (float(found[0]), float(found[1])) if isinstance(found, tuple) else (float(found), None)


def _batches(paths: Sequence[Path], of: Sequence[Any], device: str) -> Iterator[tuple[Tensor, list[Any]]]:
    """Images of one size together, uint8 (B,3,H,W), with what they are of."""
    sized = ((read_picture(path), each) for path, each in zip(paths, of, strict=True))
    for _, group in groupby(sized, key=lambda pair: pair[0].shape):
        while batch := list(islice(group, BATCH)):
            yield torch.stack([image for image, _ in batch]).to(device), [each for _, each in batch]


def read_picture(path: Path) -> Tensor:
    """An image file as uint8 (3,H,W); raises EvaluationError naming the file that can't be read."""
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except OSError as error:
        raise EvaluationError(f"{path}: {error}; allowed: an image") from error
