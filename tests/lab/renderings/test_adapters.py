"""ControlNet and IP-Adapter of a UNet of renderings: what they start from, learn, export, and that stock diffusers
loads it."""

import json
import re

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

from asag.lab import arguments
from asag.lab.embedded import train
from asag.lab.embedded.drawings import from_latents
from asag.lab.embedded.shipped import sample_from
from asag.lab.embedded.training import Training
from asag.lab.renderings import shipped
from asag.lab.renderings.adapters import BaseError, Given, check_base
from asag.lab.renderings.architecture import LATENT_SHAPE, new_unet
from asag.lab.renderings.captions import TOKEN_DIM, TOKENS
from asag.lab.renderings.controlnet import ControlNetSubject, LineSource, new_controlnet
from asag.lab.renderings.edges import agreement, control_picture, edges
from asag.lab.renderings.ip_adapter import IpAdapterSubject, ReferenceSource, attach, new_state, state_of
from asag.lab.renderings.judge import FEATURES, load_judge
from tests.lab.renderings import tiny_model
from tests.tiny_diffusers import lively, normal

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory, folder):
    return tiny_model.write_unet(tmp_path_factory.mktemp("base"), folder)


def inputs(seed=0):
    return {
        "sample": normal(2, *LATENT_SHAPE, seed=seed),
        "timestep": torch.tensor([10, 900]),
        "encoder_hidden_states": normal(2, TOKENS, TOKEN_DIM, seed=seed + 1),
    }


def predicted(unet, **more):
    with torch.no_grad():
        return unet(**inputs(), **more, return_dict=False)[0]


def test_lines_are_where_the_colour_changes_and_a_pixel_thin():
    images = torch.zeros(2, 3, 64, 64)
    images[0, 0, :, 30:] = 0.5
    images[1, :, 20:] = 0.5
    found = edges(images)
    assert (found.shape, found.dtype) == ((2, 1, 64, 64), torch.float32)
    wanted = torch.zeros(2, 64, 64)
    wanted[0, :, 30] = wanted[1, 20] = 1
    assert torch.equal(found[:, 0], wanted)
    images[0, 0, :, 30:] = 0.1
    assert not edges(images)[0].any()
    assert torch.equal(control_picture(images)[1], wanted[1].expand(3, -1, -1))


def test_agreement_is_the_f_score_within_a_pixel():
    lines = torch.zeros(5, 1, 8, 8)
    lines[:4, 0, :, 2] = 1
    wanted = torch.zeros(5, 1, 8, 8)
    wanted[0, 0, :, 3] = 1
    wanted[1, 0, :, 4] = 1
    wanted[2, 0, :, [2, 6]] = 1
    # precision 1, recall 8 of 16; two pixels aside nothing agrees; no lines in either agree.
    assert agreement(lines, wanted).tolist() == pytest.approx([1, 0, 2 / 3, 0, 1])


def test_a_fresh_controlnet_changes_nothing_and_copies_the_unets_way_down():
    unet = lively(new_unet())
    controlnet = new_controlnet(unet)
    with torch.no_grad():
        down, middle = controlnet(**inputs(), controlnet_cond=torch.rand(2, 3, 64, 64), return_dict=False)
        # Without the zero convolutions: what the UNet itself says there.
        for module in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
            torch.nn.init.dirac_(module.weight)
        own = controlnet(**inputs(), controlnet_cond=torch.rand(2, 3, 64, 64), return_dict=False)[1]
    seen = []
    unet.mid_block.register_forward_hook(lambda module, args, result: seen.append(result))
    plain = predicted(unet)
    assert torch.equal(
        predicted(unet, down_block_additional_residuals=down, mid_block_additional_residual=middle), plain
    )
    assert torch.allclose(own, seen[0], atol=1e-4)
    assert 2 * sum(parameter.numel() for parameter in controlnet.parameters()) < 16e6


def test_a_fresh_ip_adapter_changes_nothing_and_neither_does_one_of_scale_0(base):
    pipeline = shipped.load_pipeline(base)
    plain = predicted(pipeline.unet)
    image = {"image_embeds": [normal(2, 1, FEATURES, seed=5)]}
    attach(pipeline, new_state(pipeline.unet))
    assert torch.equal(predicted(pipeline.unet, added_cond_kwargs=image), plain)
    lively(pipeline.unet.encoder_hid_proj)
    for value in state_of(pipeline.unet)["ip_adapter"].values():
        value.data.normal_()
    assert not torch.allclose(predicted(pipeline.unet, added_cond_kwargs=image), plain, atol=1e-2)
    pipeline.set_ip_adapter_scale(0.0)
    assert torch.equal(predicted(pipeline.unet, added_cond_kwargs=image), plain)


def trained(subject, source):
    """Three steps at a rate that shows, the base beside it as it was before and after."""
    torch.set_num_threads(1)
    training = Training(0, CPU, subject, source)
    for _ in range(3):
        training.update(2, 0.05)
    return training


def test_a_controlnet_learns_alone_and_stock_diffusers_samples_with_what_is_exported(tmp_path, base, renderings):
    training = trained(ControlNetSubject(base, CPU, 5.0), LineSource(renderings, base, CPU))
    own = shipped.load_pipeline(base).unet.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in training.subject._unet.state_dict().items())
    training.export(tmp_path)
    exported = ControlNetModel.from_pretrained(tmp_path / "controlnet", torch_dtype=torch.float32)
    wanted = training.averaged()[0].half().float().state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in exported.state_dict().items())
    assert wanted["controlnet_mid_block.weight"].abs().max() > 1e-3
    pipeline = shipped.fast_pipeline(base, kind=StableDiffusionControlNetPipeline, controlnet=exported)
    captions, lines = shipped.Captions(base), control_picture(torch.rand(2, 3, 64, 64) * 2 - 1)
    noise = shipped.start_noise(2, 0)
    parts = captions.embed(["red heart", "blue circle"]), captions.null(2), noise
    images = sample_from(pipeline, *parts, image=lines, guidance_scale=3.0, num_inference_steps=2)
    assert images.shape == (2, 3, 64, 64)
    assert images.isfinite().all()


def test_an_ip_adapter_learns_alone_and_what_is_exported_loads_as_it_was(tmp_path, base, renderings):
    training = trained(IpAdapterSubject(base, 5.0), ReferenceSource(renderings, base, CPU))
    own = shipped.load_pipeline(base).unet.state_dict()
    held = training.model.state_dict()
    assert all(torch.equal(held[name], value) for name, value in own.items())
    training.export(tmp_path)
    pipeline = shipped.fast_pipeline(base)
    attach(pipeline, tmp_path / "ip-adapter.safetensors")
    layers = [each for each in pipeline.unet.attn_processors.values() if isinstance(each, IPAdapterAttnProcessor2_0)]
    assert [tuple(each.num_tokens) for each in layers] == [(4,)] * 4
    wanted = state_of(training.averaged()[0])
    for part, values in state_of(pipeline.unet).items():
        for name, value in values.items():
            assert torch.equal(value, wanted[part][name].half().float()), name
    assert all(value.abs().max() > 1e-3 for name, value in wanted["ip_adapter"].items() if "to_v" in name)
    captions, reference = shipped.Captions(base), torch.cat([torch.zeros(2, 1, FEATURES), normal(2, 1, FEATURES)])
    parts = captions.embed(["red heart", "blue circle"]), captions.null(2), shipped.start_noise(2, 0)
    images = sample_from(
        pipeline, *parts, ip_adapter_image_embeds=[reference], guidance_scale=3.0, num_inference_steps=2
    )
    assert images.isfinite().all()


def test_the_control_is_the_lines_of_the_picture_itself(base, renderings):
    source = LineSource(renderings, base, CPU)
    latents, given = source.draw(3, torch.Generator().manual_seed(0))
    assert torch.equal(given.added, control_picture(from_latents(latents)))
    assert given.added.any(dim=(1, 2, 3)).all()


def test_the_reference_is_another_picture_of_the_same_rendering_and_sometimes_none(base, renderings):
    source = ReferenceSource(renderings, base, CPU)
    latents, given = source.draw(64, torch.Generator().manual_seed(0))
    zeros = (given.added == 0).all(1)
    assert 0 < zeros.sum() < 16
    # The same numbers again, by hand: which renderings, their pictures, then the references' own.
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(source.renderings.names), (64,), generator=generator)
    assert torch.equal(source.renderings.of(rows, generator).latents, latents)
    reference = source.renderings.pictures.draw(rows, generator)
    with torch.no_grad():
        wanted = load_judge(base).features(reference)
    assert torch.equal(given.added[~zeros], wanted[~zeros])
    assert not torch.allclose(reference, from_latents(latents), atol=0.1)


def test_half_of_the_captions_are_dropped_and_half_of_the_rest_have_their_group(base, renderings):
    source = LineSource(renderings, base, CPU)
    table = shipped.Captions(base).table
    rows = source.renderings.of(torch.zeros(3, dtype=torch.long), torch.Generator().manual_seed(0)).labels
    tokens, added = source.tokens(source.conditions(), Given(rows, rows), torch.tensor([0.49, 0.51, 0.76]))
    assert torch.equal(tokens[0, 1:], (table.word[1] + table.place)[1:])
    assert torch.equal(tokens[1], table.word[rows[1]] + table.place)
    assert torch.equal(tokens[2, 1], table.word[2] + table.place[1])
    assert added is rows
    assert not list(source.conditions().parameters())


def test_a_base_that_cannot_be_one_is_named(tmp_path, base, renderings):
    check_base(base, renderings)
    with pytest.raises(BaseError, match=r"has no unet/config.json, .*; allowed: a UNet and its classifier"):
        check_base(tmp_path, renderings)
    with pytest.raises(BaseError, match="has not learnt unicorn"):
        check_base(base, [renderings[0]._replace(name="red unicorn")])


@pytest.mark.parametrize(
    ("part", "file"), [("controlnet", "controlnet/config.json"), ("ip-adapter", "ip-adapter.safetensors")]
)
def test_the_command_trains_an_adapter_for_a_base(tmp_path, folder, base, part, file, capsys, monkeypatch):
    monkeypatch.setattr(train, "_LOG_STEPS", 1)
    options = ["--data", str(folder), "--base", str(base), "--out", str(tmp_path), "--parts", part, "--batch", "2"]
    assert train.main([*options, "--images", "4"]) == 0
    assert f"{part}: 4 pictures" in capsys.readouterr().out
    assert (tmp_path / "model" / file).exists()
    assert train.main([*options, "--images", "6", "--resume"]) == 0
    assert [json.loads(line)["step"] for line in (tmp_path / "loss.jsonl").read_text().splitlines()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--parts", "controlnet", "--data", "."], "--parts: controlnet; allowed: .* with --data and --base"),
        (["--parts", "ip-adapter", "--base", "."], "--parts: ip-adapter; allowed: .* with --data and --base"),
        (["--base", "."], r"--base: \.; allowed: only with"),
        (["--parts", "unet", "controlnet"], "allowed: one model"),
        (["--parts", "controlnet", "--data", ".", "--base", ".", "--half-size"], "--half-size: allowed"),
    ],
)
def test_options_that_do_not_go_together_are_named(given, said, capsys):
    with pytest.raises(SystemExit):
        arguments.train(given)
    assert re.search(said, capsys.readouterr().err)
