"""Human preference by reward models: CLIP with its scale, and BLIP with layers on top, in transformers' format.

A CLIP model scores an image by the cosine of its feature and the caption's. PickScore (Kirstain et al. 2023) multiplies
that by the model's own exp(logit_scale); HPS (Wu et al. 2023) doesn't, and is printed times 100. ImageReward (Xu et al.
2023) reads the caption with BLIP's text encoder, which looks at the image, and puts linear layers on its first token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from asag.lab.evaluation.plan import EvaluationError
from asag.lab.evaluation.weights import need

PREFIX = "reward:"  # before the folder of any other model
KNOWN = {
    "pickscore": "PickScore_v1, with the processor of CLIP-ViT-H-14-laion2B-s32B-b79K",
    "hps": "HPS v2.1 as a CLIPModel of transformers, with the same processor",
    "imagereward": "ImageReward as asag.lab.evaluation.image_reward writes it",
}
TYPES = ("clip", "blip")
HEAD = "reward.safetensors"
_COSINE = 100.0  # HPS as the papers print it
_BLIP_WORDS = 35  # tokens that ImageReward reads


def is_reward(name: str) -> bool:
    return name in KNOWN or (name.startswith(PREFIX) and len(name) > len(PREFIX))


def folder_of(name: str) -> str:
    """The folder of a metric's model, in that of the weights."""
    return name.removeprefix(PREFIX)


def check(name: str, weights: Path | None) -> None:
    """Raise EvaluationError for what this metric lacks: its files, a kind of model that is known, or transformers."""
    folder, what = folder_of(name), KNOWN.get(name, "a reward model as transformers saves it")
    for file in ("config.json", "model.safetensors"):
        need(weights, f"{folder}/{file}", f"{what}, for {name}")
    assert weights is not None
    if model_type(weights / folder) == "blip":
        need(weights, f"{folder}/{HEAD}", f"the layers on BLIP's first token, for {name}")
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise EvaluationError(f"metrics: {name}: {error}; allowed: pip install sd-webui-asag[evaluate]") from error


def model_type(folder: Path) -> str:
    """clip or blip, as a folder's config.json says. Raises EvaluationError for anything else."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise EvaluationError(f"weights: {folder / 'config.json'}: {error}; allowed: transformers' JSON") from error
    if found not in TYPES:
        raise EvaluationError(f"weights: {folder}: model_type {found!r}; allowed: {', '.join(TYPES)}")
    return str(found)


class Reward(nn.Module):
    """Images and their captions -> a score each, (B,) float32: the higher, the better people should like it."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer

        super().__init__()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)

    def inputs(self, images: Sequence[Image.Image], captions: Sequence[str], longest: int) -> dict[str, Tensor]:
        """Pixels, tokens and their mask on the model's device; captions are cut to `longest` tokens."""
        options = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
        text = self.tokenizer(list(captions), **options)
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        given = {"pixel_values": pixels, "input_ids": text["input_ids"], "attention_mask": text["attention_mask"]}
        device = next(self.parameters()).device
        return {name: value.to(device) for name, value in given.items()}


class ClipReward(Reward):
    """scale x cosine of image and caption; `scale` None is the model's own exp(logit_scale)."""

    def __init__(self, folder: Path, scale: float | None) -> None:
        from transformers import CLIPModel

        super().__init__(folder)
        self.model: Any = CLIPModel.from_pretrained(folder, local_files_only=True).float().eval()
        self.scale = float(self.model.logit_scale.detach().exp()) if scale is None else scale

    def forward(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Tensor:
        longest = self.model.config.text_config.max_position_embeddings
        out = self.model(**self.inputs(images, captions, longest))
        scores: Tensor = self.scale * (out.image_embeds * out.text_embeds).sum(1)
        return scores


class BlipReward(Reward):
    """Linear layers on the first token of the caption, which the text encoder reads together with the image."""

    def __init__(self, folder: Path) -> None:
        from transformers import BlipForImageTextRetrieval

        super().__init__(folder)
        self.model: Any = BlipForImageTextRetrieval.from_pretrained(folder, local_files_only=True).float().eval()
        head = load_file(folder / HEAD)
        # Between ImageReward's layers there is nothing but dropout.
        numbers = sorted(int(name.split(".")[1]) for name in head if name.endswith(".weight"))
        self.layers = nn.Sequential(*(_linear(head, f"layers.{number}") for number in numbers))
        self.mean, self.deviation = float(head["mean"]), float(head["std"])

    def forward(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Tensor:
        given = self.inputs(images, captions, _BLIP_WORDS)
        seen = self.model.vision_model(pixel_values=given.pop("pixel_values")).last_hidden_state
        mask = torch.ones(seen.shape[:-1], dtype=torch.long, device=seen.device)
        read = self.model.text_encoder(**given, encoder_hidden_states=seen, encoder_attention_mask=mask)
        scores: Tensor = (self.layers(read.last_hidden_state[:, 0])[:, 0] - self.mean) / self.deviation
        return scores


def _linear(tensors: dict[str, Tensor], name: str) -> nn.Linear:
    weight, bias = tensors[f"{name}.weight"].float(), tensors[f"{name}.bias"].float()
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def load(name: str, weights: Path) -> Reward:
    """The model of a metric, from the files that `check` looked for. Raises EvaluationError where they don't fit."""
    folder = weights / folder_of(name)
    try:
        if model_type(folder) == "blip":
            return BlipReward(folder)
        return ClipReward(folder, _COSINE if name == "hps" else None)
    except EvaluationError:
        raise
    except Exception as error:  # a damaged file makes each of these libraries raise its own
        raise EvaluationError(f"weights: {folder}: {error}; allowed: {KNOWN.get(name, 'a reward model')}") from error


class Preference:
    """Collects the scores of a method's images, and compares them with those of the first method, image by image."""

    def __init__(self, reward: Reward) -> None:
        self.reward = reward
        self._first: Tensor | None = None
        self._scores: list[Tensor] = []

    def to(self, device: str) -> Preference:
        self.reward.to(device)
        return self

    def update(self, images: Tensor, captions: Sequence[str]) -> None:
        """uint8 images (B,3,H,W) of one size, and their captions."""
        pictures = [Image.fromarray(image.permute(1, 2, 0).cpu().numpy()) for image in images]
        self._scores.append(self.reward(pictures, captions).double().cpu())

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation over the images."""
        scores = torch.cat(self._scores)
        return scores.mean(), scores.std(correction=0)

    def to_first(self) -> dict[str, float]:
        """The mean difference to the first method's images, and its standard error; nothing for that one itself."""
        if self._first is None or len(self._first) < 2:
            return {}
        differences = torch.cat(self._scores) - self._first
        return {
            "to_first": float(differences.mean()),
            "to_first_error": float(differences.std()) / len(differences) ** 0.5,
        }

    def reset(self) -> None:
        self._first = torch.cat(self._scores) if self._first is None else self._first
        self._scores = []
