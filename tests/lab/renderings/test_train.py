"""Training on a folder of renderings: sizes, exports, ends, and what the classifier's judgement is worth."""

import json
import os
import signal

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, JointAttnProcessor2_0

from asag.lab.embedded import quality, train
from asag.lab.embedded.drawings import from_latents
from asag.lab.embedded.subjects import Task
from asag.lab.renderings import recipe, shipped
from asag.lab.renderings.architecture import LATENT_SHAPE, new_transformer, new_unet
from asag.lab.renderings.captions import TOKEN_DIM, TOKENS
from asag.lab.renderings.judge import Judge, load_judge, save_judge, verdict
from asag.lab.renderings.judge_training import JudgeTraining, worn
from asag.lab.renderings.source import Renderings
from asag.lab.renderings.subjects import PlainAttention, PlainJointAttention, subject

CPU = torch.device("cpu")


@pytest.mark.parametrize(("build", "name"), [(new_unet, "unet"), (new_transformer, "mmdit")])
def test_a_model_fits_into_sixteen_megabytes_of_half_precision(build, name):
    model, latents = build(), torch.zeros(1, *LATENT_SHAPE)
    task = Task(latents, torch.zeros(1), latents, torch.zeros(1))
    with torch.no_grad():
        found = subject(name, CPU).predict(model, task, torch.zeros(1, TOKENS, TOKEN_DIM))
    assert found.shape == latents.shape
    assert 2 * sum(parameter.numel() for parameter in model.parameters()) <= 16e6


def test_the_unet_attends_to_256_tokens_in_every_block_and_to_none_at_the_finest_level():
    tokens = {}

    def note(name):
        return lambda module, args: tokens.__setitem__(name, args[0].shape[1])

    unet = new_unet()
    for name, module in unet.named_modules():
        if name.endswith("attn1"):
            module.register_forward_pre_hook(note(name))
    with torch.no_grad():
        unet(torch.zeros(1, *LATENT_SHAPE), torch.zeros(1), torch.zeros(1, TOKENS, TOKEN_DIM))
    assert set(tokens.values()) == {256}
    assert len(tokens) == 6
    assert not any(name.startswith(("down_blocks.0", "up_blocks.1")) for name in tokens)


@pytest.mark.parametrize("cross", [False, True])
def test_plain_attention_is_torchs_own(cross):
    torch.manual_seed(0)
    attention = Attention(24, cross_attention_dim=10 if cross else None, heads=3, dim_head=8).double()
    hidden, context = torch.randn(2, 7, 24).double(), torch.randn(2, 5, 10).double() if cross else None
    wanted = AttnProcessor2_0()(attention, hidden, context)
    assert torch.allclose(PlainAttention()(attention, hidden, context), wanted, atol=1e-12)


@pytest.mark.parametrize("pre_only", [False, True])
def test_plain_joint_attention_is_diffusers_own(pre_only):
    torch.manual_seed(0)
    options = {"heads": 3, "dim_head": 8, "added_kv_proj_dim": 24, "context_pre_only": pre_only, "bias": True}
    attention = Attention(24, qk_norm="rms_norm", eps=1e-6, processor=JointAttnProcessor2_0(), **options).double()
    hidden, caption = torch.randn(2, 7, 24).double(), torch.randn(2, 5, 24).double()
    wanted = attention(hidden, caption)
    for a, b in zip(PlainJointAttention()(attention, hidden, caption), wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_held_out_names_are_not_drawn_and_dropped_captions_are_null(renderings, monkeypatch):
    monkeypatch.setattr("asag.lab.renderings.source.held_out", lambda names: frozenset(["red heart", "green square"]))
    source = Renderings(renderings, CPU)
    assert len(source.names) == 8
    assert {"red", "heart", "green", "square"} <= set(source.vocabulary.words)
    conditions = source.conditions()
    batch = source.draw(4, torch.Generator().manual_seed(0))
    assert batch.latents.shape == (4, *LATENT_SHAPE)
    tokens = source.tokens(conditions, batch.labels, torch.tensor([0.0, 0.11, 0.13, 0.99]))
    null = conditions.word[1] + conditions.place[1:]
    assert torch.equal(tokens[0, 1:], null)
    assert torch.equal(tokens[1, 1:], null)
    assert torch.equal(tokens[2], conditions.word[batch.labels[2]] + conditions.place)
    assert torch.equal(tokens[3, 1], conditions.word[2] + conditions.place[1])


class Says(torch.nn.Module):
    """A double of the judge that says what it is told."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.names, self.groups = ["a", "b", "c"], ["g", "h"]
        self.group_of = {"a": "g", "b": "g", "c": "h"}

    def forward(self, images):
        return images[:, :3], images[:, 3:]


def test_a_picture_is_named_among_the_allowed_names_alone():
    said = torch.tensor([[1.0, 0.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0, 1.0]])
    found = verdict(Says(), said, ["a", "a", "c"], among=["a", "b", "c"])
    assert (found.name.tolist(), found.group.tolist()) == ([False, False, True], [True, False, True])
    assert verdict(Says(), said, ["a", "a", "b"], among=["a", "b"]).name.tolist() == [True, False, False]
    assert found.shares() == {"name_right": pytest.approx(1 / 3), "group_right": pytest.approx(2 / 3)}


def test_a_judge_is_the_same_after_saving_up_to_half_precision(tmp_path):
    torch.manual_seed(0)
    judge = Judge({"red heart": "symbols", "cat": "animals"}).eval()
    save_judge(judge, tmp_path)
    again = load_judge(tmp_path)
    assert (again.names, again.groups, again.group_of) == (judge.names, judge.groups, judge.group_of)
    images = torch.rand(2, 3, 64, 64)
    for a, b in zip(judge(images), again(images), strict=True):
        assert torch.allclose(a, b, atol=5e-3)


def test_a_judges_training_that_is_ended_goes_on_as_if_it_had_not_been(tmp_path, renderings):
    torch.set_num_threads(1)

    def training(seed):
        torch.manual_seed(seed)
        return JudgeTraining(renderings, 2, torch.Generator().manual_seed(seed), torch.float32)

    straight, ended, resumed = training(0), training(0), training(9)
    assert straight.run(tmp_path / "straight.pt")
    ended.update()
    assert not ended.run(tmp_path / "judge.pt", ended=[15])
    resumed.load(tmp_path / "judge.pt")
    assert resumed.run(tmp_path / "judge.pt")
    assert resumed.step == 2
    for name, value in straight.judge.state_dict().items():
        assert torch.equal(value, resumed.judge.state_dict()[name]), name


def test_some_of_the_judges_pictures_are_noisy_or_soft_and_some_as_they_are():
    images = torch.zeros(64, 3, 64, 64)
    images[:, :, ::2] = 1.0
    found = worn(images, torch.Generator().manual_seed(0))
    same = [torch.equal(a, b) for a, b in zip(images, found, strict=True)]
    soft = [float(picture.std()) < 0.3 for picture in found]
    assert 10 < sum(same) < 40
    assert 5 < sum(soft) < 30


@pytest.mark.parametrize("name", ["unet", "mmdit"])
def test_the_command_trains_on_a_folder_and_exports_what_quality_measures(tmp_path, folder, name, capsys, monkeypatch):
    monkeypatch.setattr(train, "_LOG_STEPS", 1)
    monkeypatch.setattr(recipe, "_SHEET_SECONDS", 0)
    budget = ["--images", "4", "--batch", "2", "--classifier-steps", "2", "--dtype", "bfloat16", "--optimiser", "muon"]
    options = [*budget, "--data", str(folder), "--out", str(tmp_path), "--parts", "classifier", name]
    assert train.main(options) == 0
    said = capsys.readouterr().out
    assert "of fresh augmented renderings" in said
    assert f"{name}: 4 pictures" in said
    row = json.loads((tmp_path / "loss.jsonl").read_text().splitlines()[-1])
    assert (row["step"], row["images"]) == (2, 4)
    model, sheet = tmp_path / "model", tmp_path / "sheet.png"
    assert quality.main(["--model", str(model), "--samples", "3", "--steps", "2", "--sheet", str(sheet)]) == 0
    assert capsys.readouterr().out.count("3 samples, 1 of 7: name_right") == 2
    assert sheet.exists()


def test_a_run_that_is_asked_to_end_keeps_its_state_and_goes_on(tmp_path, folder, monkeypatch, capsys):
    options = ["--data", str(folder), "--out", str(tmp_path), "--parts", "mmdit", "--images", "6", "--batch", "2"]
    monkeypatch.setattr(train, "_LOG_STEPS", 1)
    before, log = signal.getsignal(signal.SIGTERM), train._log
    monkeypatch.setattr(train, "_log", lambda *args: (log(*args), os.kill(os.getpid(), signal.SIGTERM)))
    assert train.main(options) == 0
    assert "mmdit: 2 pictures" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.setattr(train, "_log", log)
    assert train.main([*options, "--resume"]) == 0
    assert "mmdit: 6 pictures" in capsys.readouterr().out
    assert [json.loads(line)["step"] for line in (tmp_path / "loss.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_a_folder_without_renderings_is_a_mistake_that_says_what_to_do(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train.main(["--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert "--data: " in (said := capsys.readouterr().err)
    assert "npm install" in said


def test_a_caption_that_the_model_has_not_learnt_is_named(tmp_path, renderings):
    source = Renderings(renderings, CPU)
    source.save(source.conditions(), tmp_path)
    captions = shipped.Captions(tmp_path)
    assert captions.embed(["red heart", "blue circle, symbols"]).shape == (2, TOKENS, TOKEN_DIM)
    assert captions.null(2).shape == (2, TOKENS, TOKEN_DIM)
    with pytest.raises(ValueError, match="has not learnt unicorn"):
        captions.embed(["red unicorn"])


def test_small_pictures_are_means_of_large_ones_and_come_before_them(tmp_path, folder, renderings, capsys):
    large, small = (Renderings(renderings, CPU, half_size=half) for half in (False, True))
    batches = [source.draw(2, torch.Generator().manual_seed(4)) for source in (large, small)]
    wanted, found = (from_latents(batch.latents) for batch in batches)
    assert found.shape == (2, 3, 32, 32)
    assert torch.allclose(found, wanted.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5)), atol=1e-6)
    options = ["--data", str(folder), "--out", str(tmp_path), "--parts", "unet", "--batch", "1"]
    assert train.main([*options, "--images", "1", "--half-size"]) == 0
    pipeline, captions = shipped.fast_pipeline(tmp_path / "model"), shipped.Captions(tmp_path / "model")
    images = shipped.sample(pipeline, captions, ["red heart"], half_size=True, num_inference_steps=1)
    assert images.shape == (1, 3, 64, 64)
    assert train.main([*options, "--images", "2", "--resume"]) == 0
    assert "unet: 2 pictures" in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["--data", "x", "--parts", "mmdit"]])
def test_small_pictures_are_for_the_unet_of_renderings(more, capsys):
    with pytest.raises(SystemExit):
        train.main(["--half-size", *more])
    assert "--half-size: allowed: only with --data" in capsys.readouterr().err
