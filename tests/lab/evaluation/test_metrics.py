"""The metrics: against their formulas on the features of a tiny stand-in for Inception, and what is missing named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from torch import Tensor, nn

from asag.lab.evaluation import cli, metrics
from asag.lab.evaluation.plan import EvaluationError, items, read_methods
from asag.lab.evaluation.store import Store
from tests import tiny_text

METHODS = read_methods("cfg,asag:1.5")
PROMPTS = [f"picture {number}" for number in range(12)]


class TinyFeatures(nn.Module):
    """Means and products of the channels in each quarter of the picture, (B,12), in place of Inception's features."""

    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        quarters = nn.functional.adaptive_avg_pool2d(images.float() / 64, 2)
        return quarters.flatten(1)


def random_picture(seed: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    generator = np.random.default_rng(seed)
    values = generator.normal(128, 40, (*size, 3)) + generator.normal(0, 30, (1, 1, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


@pytest.fixture
def pictured(tmp_path: Path) -> tuple[Store, Path]:
    """Images of both methods, and references of two sizes."""
    store, reference = Store(tmp_path / "out"), tmp_path / "real"
    reference.mkdir()
    for offset, method in enumerate(METHODS):
        for item in items(PROMPTS, [0]):
            store.write(method, item, random_picture(100 * offset + item.index))
    for number in range(15):
        random_picture(1000 + number, (16, 16) if number % 3 else (24, 16)).save(reference / f"{number}.png")
    return store, reference


def features(paths: list[Path]) -> Any:
    return torch.cat([TinyFeatures()(metrics.read_picture(path)[None]) for path in paths]).double().numpy()


def test_fid_kid_and_is_are_their_formulas(pictured: tuple[Store, Path]) -> None:
    pytest.importorskip("torchmetrics")
    store, reference = pictured
    every = items(PROMPTS, [0])
    tiny = metrics.Models(TinyFeatures(), TinyFeatures(), None)
    found = list(metrics.measure(["fid", "kid", "is"], tiny, store, METHODS, every, reference, "cpu"))
    assert [(each["method"], each["metric"]) for each in found] == [
        (method.name, name) for method in METHODS for name in ("fid", "kid", "is")
    ]
    real = features(metrics.pictures(reference))
    for number, method in enumerate(METHODS):
        fid, kid, score = found[3 * number : 3 * number + 3]
        made = features([store.path(method, item) for item in every])
        root = sqrtm(np.cov(real.T) @ np.cov(made.T)).real
        distance = ((real.mean(0) - made.mean(0)) ** 2).sum()
        assert fid["value"] == pytest.approx(distance + np.trace(np.cov(real.T) + np.cov(made.T) - 2 * root), rel=1e-3)
        assert (fid["images"], fid["reference"], kid["subset"]) == (12, 15, 12)
        # KID takes 12 of 15 references at random a hundred times; on average that is the estimate over all of them.
        everything = unbiased_mmd(real, made)
        assert kid["value"] == pytest.approx(everything, abs=4 * kid["spread"] / 10 + 1e-6)
        logits = torch.from_numpy(made).softmax(1)
        assert 1 <= score["value"] <= logits.shape[1]
    again = list(metrics.measure(["kid", "is"], tiny, store, METHODS, every, reference, "cpu"))
    assert [each for each in found if each["metric"] != "fid"] == again


def unbiased_mmd(first: Any, second: Any) -> float:
    def kernel(a: Any, b: Any) -> Any:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Any) -> float:
        products = kernel(a, a)
        return (products.sum() - np.trace(products)) / (len(a) * (len(a) - 1))

    return within(first) + within(second) - 2 * kernel(first, second).mean()


def test_clip_score_is_the_cosine_of_image_and_caption(pictured: tuple[Store, Path], tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    from transformers import CLIPModel, CLIPProcessor

    store, _ = pictured
    folder = tmp_path / "weights" / metrics.CLIP
    tiny_text.save_clip(folder)
    metrics.check(["clip"], tmp_path / "weights", None, 1)
    every = items(["a cat", "a caption with more words than the text encoder has places for them"], [0])
    found = list(metrics.measure(["clip"], metrics.models(["clip"], folder.parent), store, METHODS, every, None, "cpu"))
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    for each, method in zip(found, METHODS, strict=True):
        images = [Image.open(store.path(method, item)) for item in every]
        given = processor(
            text=[item.prompt for item in every], images=images, return_tensors="pt", padding=True, truncation=True
        )
        with torch.no_grad():
            out = model(**given)
        cosines = (out.image_embeds * out.text_embeds).sum(1)
        assert each["value"] == pytest.approx(max(100 * float(cosines.mean()), 0), abs=0.05)


def test_the_command_measures_and_keeps_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictured: tuple[Store, Path]
) -> None:
    pytest.importorskip("torchmetrics")
    # A double: that torch-fidelity is there is looked at first, and nothing here looks through its Inception.
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    store, reference = pictured
    prompts, weights = tmp_path / "prompts.txt", tmp_path / "weights"
    prompts.write_text("\n".join(PROMPTS))
    weights.mkdir()
    (weights / metrics.INCEPTION).write_bytes(b"a stand-in takes its place below")
    monkeypatch.setattr(metrics, "models", lambda *given: metrics.Models(TinyFeatures(), TinyFeatures(), None))

    def measured(names: str) -> list[tuple[str, str]]:
        given = ["--pipeline", str(tmp_path), "--prompts", str(prompts), "--out", str(store.folder), "--device", "cpu"]
        given += ["--methods", "cfg,asag:1.5", "--reference", str(reference), "--weights", str(weights)]
        assert cli.main([*given, "--metrics", names]) == 0  # all images are there, so that no pipeline is loaded
        lines = [json.loads(line) for line in (store.folder / cli.RESULTS).read_text().splitlines()]
        return [(each["method"], each["metric"]) for each in lines]

    assert measured("fid") == [("cfg", "fid"), ("asag-1.5", "fid")]
    assert measured("is") == [("cfg", "fid"), ("asag-1.5", "fid"), ("cfg", "is"), ("asag-1.5", "is")]
    assert sorted(measured("fid")) == sorted(measured("is"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["fdi"], "metrics: 'fdi'; allowed: fid, kid, is, clip, pickscore"),
        (["fid"], f"weights: .*{metrics.INCEPTION} is missing; allowed: .*torch-fidelity's InceptionV3"),
        (["clip"], f"weights: .*{metrics.CLIP}/config.json is missing; allowed: .*nothing is downloaded"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        metrics.check(names, tmp_path, tmp_path, 9)


def test_missing_folders_and_images_are_named(tmp_path: Path) -> None:
    (tmp_path / metrics.INCEPTION).touch()
    with pytest.raises(EvaluationError, match=f"weights: not given; allowed: a folder with {metrics.INCEPTION}"):
        metrics.check(["is"], None, None, 9)
    with pytest.raises(EvaluationError, match="reference: not given; allowed: a folder of real images"):
        metrics.check(["fid"], tmp_path, None, 9)
    with pytest.raises(EvaluationError, match=r"reference: .*; allowed: a folder with two images or more"):
        metrics.check(["kid"], tmp_path, tmp_path, 9)
    with pytest.raises(EvaluationError, match="metrics: is of 1 image; allowed: of two or more"):
        metrics.check(["is"], tmp_path, None, 1)


def test_damaged_weights_of_clip_are_named(tmp_path: Path) -> None:
    folder = tmp_path / metrics.CLIP
    tiny_text.save_clip(folder)
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(EvaluationError, match=f"(?s)weights: .*{metrics.CLIP}: .*; allowed: a CLIP model"):
        metrics.models(["clip"], tmp_path)


def inception_double(name: str, features: list[str], feature_extractor_weights_path: str) -> None:
    """A double of torchmetrics' NoTrainInceptionV3, which needs torch-fidelity: it loads the file as that does."""
    torch.load(feature_extractor_weights_path)


@pytest.mark.parametrize("real", [False, True], ids=["double", "torch-fidelity"])
def test_a_damaged_file_of_weights_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real: bool) -> None:
    pytest.importorskip("torchmetrics")
    if real:
        reason = "the extra `evaluate` isn't installed: it needs a torchvision built for this torch"
        pytest.importorskip("torch_fidelity", reason=reason)
    else:
        monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", inception_double)
    (tmp_path / metrics.INCEPTION).write_bytes(b"not weights")
    with pytest.raises(
        EvaluationError, match=f"(?s)weights: .*{metrics.INCEPTION}: .*; allowed: torch-fidelity's file"
    ):
        metrics.models(["is"], tmp_path)
