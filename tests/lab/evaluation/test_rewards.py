"""Human preference: the scores of tiny random reward models against their formulas in float64, and what is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BertTokenizer,
    BlipConfig,
    BlipForImageTextRetrieval,
    CLIPModel,
)

from asag.lab.evaluation import cli, image_reward, metrics, rewards
from asag.lab.evaluation.plan import EvaluationError, items, read_methods
from asag.lab.evaluation.store import Store
from tests import tiny_text

CAPTIONS = ["a cab", "bad egg", "a caption with more letters than the text encoder has places for them"]
VISION = {
    **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6},
}
TEXT = {
    **{"vocab_size": 140, "hidden_size": 12, "encoder_hidden_size": 16, "intermediate_size": 24},
    **{"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 40},
    **{"bos_token_id": 2, "sep_token_id": 3, "pad_token_id": 0, "eos_token_id": 3},
}


def picture(seed: int) -> Image.Image:
    values = np.random.default_rng(seed).normal(128, 50, (40, 48, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


PICTURES = [picture(seed) for seed in range(3)]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A CLIP whose scale isn't the usual 100."""
    folder = tmp_path / "weights" / "pickscore"
    tiny_text.save_clip(folder)
    model = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        model.logit_scale.fill_(1.7)
    model.save_pretrained(folder)
    return folder


def cosines(folder: Path) -> Any:
    """A row for each picture with its own caption, in float64, by the model's encoders alone."""
    model = CLIPModel.from_pretrained(folder).double().eval()
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    found = []
    for image, caption in zip(PICTURES, CAPTIONS, strict=True):
        pixels = processor(images=image, return_tensors="pt")["pixel_values"].double()
        tokens = tokenizer([caption], truncation=True, max_length=tiny_text.TOKENS, return_tensors="pt")["input_ids"]
        seen = model.visual_projection(model.vision_model(pixels).pooler_output)[0]
        read = model.text_projection(model.text_model(tokens).pooler_output)[0]
        found.append(seen @ read / (seen.norm() * read.norm()))
    return torch.stack(found)


@torch.no_grad()
def test_pickscore_is_the_models_own_scale_times_the_cosine_and_hps_a_hundred_times(clip: Path) -> None:
    weights = clip.parent
    expected = cosines(clip)
    assert expected.std() > 0.01
    assert rewards.load("pickscore", weights)(PICTURES, CAPTIONS).double().numpy() == pytest.approx(
        np.exp(1.7) * expected.numpy(), abs=1e-5
    )
    clip.rename(weights / "hps")
    assert rewards.load("hps", weights)(PICTURES, CAPTIONS).double().numpy() == pytest.approx(
        100 * expected.numpy(), abs=1e-4
    )
    other = rewards.load("reward:hps", weights)(PICTURES, CAPTIONS)
    assert other.double().numpy() == pytest.approx(np.exp(1.7) * expected.numpy(), abs=1e-5)


def original_names(model: nn.Module) -> dict[str, torch.Tensor]:
    """A BLIP's tensors as ImageReward.pt names them, with some that the reward doesn't need, and layers on top."""
    vision = {
        "embeddings.class_embedding": "cls_token",
        "embeddings.position_embedding": "pos_embed",
        "embeddings.patch_embedding.": "patch_embed.proj.",
        "post_layernorm": "norm",
        "encoder.layers": "blocks",
        "self_attn.projection": "attn.proj",
        "self_attn": "attn",
        "layer_norm": "norm",
    }
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith("vision_model."):
            new = name.removeprefix("vision_model.")
            for theirs, own in vision.items():
                new = new.replace(theirs, own)
            state[f"blip.visual_encoder.{new}"] = value
        elif name.startswith("text_encoder."):
            state[f"blip.{name}"] = value
    widths = [(0, 12, 10), (2, 10, 6), (4, 6, 1)]
    for number, wide, narrow in widths:
        state[f"mlp.layers.{number}.weight"] = torch.randn(narrow, wide)
        state[f"mlp.layers.{number}.bias"] = torch.randn(narrow)
    return {**state, "blip.text_encoder.embeddings.position_ids": torch.arange(40)[None]}


@pytest.fixture
def blip(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor], Any]:
    """The folder that image_reward writes, the tensors as ImageReward.pt has them, and the model that they are of."""
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (tokens / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(tokens / "vocab.txt")).save_pretrained(tokens)
    torch.manual_seed(0)
    model = BlipForImageTextRetrieval(BlipConfig(vision_config=VISION, text_config=TEXT)).eval()
    with torch.no_grad():
        for value in model.parameters():  # larger than at the start of training, so that every part tells
            value.add_(0.3 * torch.randn_like(value))
    state = original_names(model)
    image_reward.convert(state, tokens, tmp_path / "weights" / "imagereward", VISION, TEXT)
    return tmp_path / "weights", state, model


@torch.no_grad()
def test_imagereward_is_the_layers_on_the_first_token_of_the_caption_read_with_the_image(
    blip: tuple[Path, dict[str, torch.Tensor], Any],
) -> None:
    weights, state, model = blip
    found = rewards.load("imagereward", weights)(PICTURES, CAPTIONS).double().numpy()
    model = model.double()
    folder = weights / "imagereward"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    mean, deviation = (
        torch.tensor(each).double()
        for each in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    for score, image, caption in zip(found, PICTURES, CAPTIONS, strict=True):
        small = image.resize((int(48 * 32 / 40), 32), Image.Resampling.BICUBIC).crop((3, 0, 35, 32))
        pixels = (torch.from_numpy(np.array(small)).double() / 255 - mean) / deviation
        # As ImageReward's own code: 35 places, of which a mask says which are the caption's.
        tokens = tokenizer(caption, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
        out = model(tokens["input_ids"], pixels.permute(2, 0, 1)[None], attention_mask=tokens["attention_mask"])
        hidden = out.question_embeds[0, 0]
        for number in (0, 2, 4):
            hidden = (
                state[f"mlp.layers.{number}.weight"].double() @ hidden + state[f"mlp.layers.{number}.bias"].double()
            )
        assert score == pytest.approx((float(hidden) - 0.16717362830052426) / 1.0333394966054072, abs=2e-5)
    assert np.std(found) > 0.01


def test_a_file_that_lacks_tensors_is_refused(blip: tuple[Path, dict[str, torch.Tensor], Any]) -> None:
    weights, state, _ = blip
    gone = "blip.visual_encoder.blocks.1.attn.qkv.weight"
    rest = {name: value for name, value in state.items() if name != gone}
    with pytest.raises(
        ValueError, match=r"lacks vision_model.encoder.layers.1.self_attn.qkv.weight; allowed: the file"
    ):
        image_reward.convert(rest, weights.parent / "tokens", weights / "again", VISION, TEXT)


def test_scores_of_a_method_are_compared_with_the_first_ones_image_by_image(clip: Path, tmp_path: Path) -> None:
    methods, every = read_methods("cfg,asag:1.5"), items(CAPTIONS, [0])
    store = Store(tmp_path / "out")
    for offset, method in enumerate(methods):
        for item in every:
            store.write(method, item, picture(10 * offset + item.index))
    names = ["pickscore"]
    metrics.check(names, clip.parent, None, len(every))
    found = list(metrics.measure(names, metrics.models(names, clip.parent), store, methods, every, None, "cpu"))
    model = rewards.load("pickscore", clip.parent)
    with torch.no_grad():
        scores = [model([picture(10 * n + i) for i in range(3)], CAPTIONS).double() for n in range(2)]
    assert [each["method"] for each in found] == ["cfg", "asag-1.5"]
    for each, expected in zip(found, scores, strict=True):
        assert each["value"] == pytest.approx(float(expected.mean()), abs=1e-5)
        assert each["spread"] == pytest.approx(float(expected.std(correction=0)), abs=1e-5)
    assert "to_first" not in found[0]
    differences = (scores[1] - scores[0]).numpy()
    assert found[1]["to_first"] == pytest.approx(differences.mean(), abs=1e-5)
    assert found[1]["to_first_error"] == pytest.approx(np.std(differences, ddof=1) / 3**0.5, abs=1e-5)


def test_the_command_says_how_far_a_method_is_from_the_first(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, prompts = Store(tmp_path / "out"), tmp_path / "prompts.txt"
    prompts.write_text("\n".join(CAPTIONS))
    for offset, method in enumerate(read_methods("cfg,asag:1.5")):
        for item in items(CAPTIONS, [0]):
            store.write(method, item, picture(10 * offset + item.index))
    given = ["--pipeline", str(tmp_path), "--prompts", str(prompts), "--out", str(store.folder), "--device", "cpu"]
    given += ["--methods", "cfg,asag:1.5", "--metrics", "pickscore", "--weights", str(clip.parent)]
    assert cli.main(given) == 0  # all images are there, so that no pipeline is loaded
    first, second = [json.loads(line) for line in (store.folder / cli.RESULTS).read_text().splitlines()]
    said = capsys.readouterr().out
    figures = f"{second['to_first']:+.4g} ± {second['to_first_error']:.2g} to cfg"
    assert f"{second['value']:.4f} ± {second['spread']:.4g} ({figures})" in said
    assert f"{first['value']:.4f} ± {first['spread']:.4g}\n" in said


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pickscore", r"weights: .*pickscore/config.json is missing; allowed: .*PickScore_v1.*nothing is downloaded"),
        ("hps", "weights: .*hps/config.json is missing; allowed: .*HPS v2.1"),
        ("imagereward", "weights: .*imagereward/config.json is missing; allowed: .*image_reward writes it"),
        ("reward:mine", "weights: .*mine/config.json is missing; allowed: .*a reward model as transformers saves it"),
        ("reward:", "metrics: 'reward:'; allowed: fid, .*, imagereward, reward:FOLDER"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        metrics.check([name], tmp_path, None, 9)


def test_weights_of_another_kind_and_without_layers_are_named(clip: Path, tmp_path: Path) -> None:
    config = json.loads((clip / "config.json").read_text())
    (clip / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(EvaluationError, match="pickscore: model_type 'bert'; allowed: clip, blip"):
        metrics.check(["pickscore"], clip.parent, None, 9)
    (clip / "config.json").write_text(json.dumps(config | {"model_type": "blip"}))
    with pytest.raises(EvaluationError, match=r"reward.safetensors is missing; allowed: .*the layers on BLIP's first"):
        metrics.check(["pickscore"], clip.parent, None, 9)
    save_file({"mean": torch.zeros(1)}, clip / rewards.HEAD)
    (clip / "config.json").write_text("{")
    with pytest.raises(EvaluationError, match=r"config.json: .*; allowed: transformers' JSON"):
        metrics.check(["pickscore"], clip.parent, None, 9)


def test_damaged_weights_and_a_missing_package_are_named(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clip / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(EvaluationError, match=r"(?s)weights: .*pickscore: .*; allowed: PickScore_v1"):
        metrics.models(["pickscore"], clip.parent)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        EvaluationError, match=r"metrics: pickscore: .*; allowed: pip install sd-webui-asag\[evaluate\]"
    ):
        metrics.check(["pickscore"], clip.parent, None, 9)
