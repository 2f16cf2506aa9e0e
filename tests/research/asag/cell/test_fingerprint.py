"""The fingerprint of tiny random models, against the networks' own queries and keys and an attention of a few lines."""

import json

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from research.asag.cell import fingerprint
from research.asag.cell.model import Model
from tests.lab.renderings.tiny_model import HEADS

STEPS = 4


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def counted(query, key, sign, tolerance):
    """Sweeps of one head in numpy: update rows, update columns, until columns' potentials hardly change."""
    logits, g = sign * query @ key.T / np.sqrt(query.shape[1]), np.zeros(len(key))
    for sweep in range(1, fingerprint.MOST):
        f = -np.log(len(query)) - logsumexp(logits + g, axis=1)
        new = -np.log(len(key)) - logsumexp(logits + f[:, None], axis=0)
        if np.abs(new - g).mean() < tolerance:
            return sweep
        g = new
    return fingerprint.MOST


@pytest.mark.parametrize(("cost", "sign"), [("adversarial", -1), ("similarity", 1)])
def test_sweeps_are_counted_as_by_hand(cost, sign):
    generator = torch.Generator().manual_seed(3)
    key = 2 * torch.randn(2, 3, 20, 8, generator=generator)
    query = key + torch.randn(2, 3, 20, 8, generator=generator)  # which agree, so that the costs differ
    found = fingerprint.sweeps(query, key, cost)
    for row, head, place in np.ndindex(2, 3, 3):
        own = query[row, head].double().numpy(), key[row, head].double().numpy()
        assert found[row, head, place] == counted(*own, sign, fingerprint.TOLERANCES[place])
    assert len(found.unique()) > 2


@pytest.mark.parametrize(("steps", "levels", "at"), [(14, 4, [1, 5, 8, 12]), (3, 3, [0, 1, 2]), (2, 5, [0, 1])])
def test_noise_levels_are_spread_over_the_steps(steps, levels, at):
    assert fingerprint.levels_of(steps, levels) == at


class Weakened:
    """An attention processor of diffusers' UNet in a few lines: one head, or all, attends by a map of its own."""

    def __init__(self, kind, head):
        self.kind, self.head = kind, head

    def __call__(self, attn, hidden, *args, **kwargs):
        parts = (
            layer(hidden).unflatten(2, (attn.heads, -1)).transpose(1, 2) for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        self.query, self.key, value = parts
        logits = self.query @ self.key.transpose(2, 3) / self.query.shape[3] ** 0.5
        own = logits.softmax(3)
        heads = range(attn.heads) if self.head is None else [self.head]
        for head in heads:
            own[:, head] = self.map(logits[:, head].double()).float()
        return attn.to_out[0]((own @ value).transpose(1, 2).flatten(2))

    def map(self, logits):
        if self.kind == "uniform":
            return torch.full_like(logits, 1 / logits.shape[2])
        g = torch.zeros_like(logits[:, 0])
        for _ in range(2):
            f = -torch.logsumexp(-logits + g[:, None], 2)
            g = -torch.logsumexp(-logits + f[:, :, None], 1)
        return (-logits + g[:, None]).softmax(2)


@torch.no_grad()
@pytest.mark.parametrize("head", [None, 1])
def test_figures_of_the_unet_are_those_of_diffusers_with_an_attention_of_a_few_lines(unet_folder, head):
    model = Model(unet_folder, steps=STEPS)
    lines = fingerprint.measure(model, 2, 1)
    (line,) = [each for each in lines if (each["block"], each["head"], each["step"]) == ("mid.0", head, 2)]
    calls = []
    handle = model.network.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((args, kwargs, output[0])), with_kwargs=True
    )
    model.sample(model.asked(2, 40_000), model.noise(2, 104), {})
    handle.remove()
    args, kwargs, clean = calls[2]
    attention = model.network.mid_block.attentions[0].transformer_blocks[0].attn1
    before, pushes = attention.processor, {}
    for kind in ("asag", "uniform"):
        attention.processor = Weakened(kind, head)
        pushes[kind] = (clean - model.network(*args, **kwargs)[0])[2:]
        processor, attention.processor = attention.processor, before
    query, key = processor.query[2:], processor.key[2:]
    rows = slice(None) if head is None else slice(head, head + 1)
    cosine = torch.nn.functional.cosine_similarity(query, key, dim=3)[:, rows].mean()
    alike = torch.nn.functional.cosine_similarity(pushes["asag"].flatten(1), pushes["uniform"].flatten(1)).mean()
    cfg = (clean[2:] - clean[:2]).square().mean((1, 2, 3)).sqrt()
    size = (pushes["asag"].square().mean((1, 2, 3)).sqrt() / cfg).mean()
    assert line["cosine"] == pytest.approx(float(cosine), rel=1e-3, abs=1e-4)
    assert line["to_uniform"] == pytest.approx(float(alike), rel=2e-3)
    assert line["size"] == pytest.approx(float(size), rel=2e-3)
    own = [
        counted(q.double().numpy(), k.double().numpy(), -1, 1e-3)
        for q, k in zip(query[:, rows].flatten(0, 1), key[:, rows].flatten(0, 1), strict=True)
    ]
    assert line["adversarial 0.001"] == pytest.approx(np.mean(own), rel=1e-3)
    assert line["tokens"] == 256


@pytest.mark.parametrize("kind", ["unet", "mmdit"])
def test_the_command_writes_a_line_for_each_layer_head_and_noise_level(request, tmp_path, kind, capsys):
    folder = request.getfixturevalue(f"{kind}_folder")
    options = [
        "--model",
        str(folder),
        "--out",
        str(tmp_path),
        "--pictures",
        "1",
        "--levels",
        "2",
        "--steps",
        str(STEPS),
    ]
    assert fingerprint.main(options) == 0
    lines = [json.loads(each) for each in (tmp_path / f"fingerprint-renderings-{kind}.jsonl").read_text().splitlines()]
    blocks = {"unet": ["in.3.0", "mid.0", "out.0.0", "out.1.0"], "mmdit": ["joint.0.0", "joint.1.0"]}[kind]
    places = [(each["step"], each["block"], each["head"]) for each in lines]
    assert places == [(step, block, head) for step in (1, 3) for block in blocks for head in (None, *range(HEADS))]
    assert {each["tokens"] for each in lines} == {256}
    said = capsys.readouterr().out
    assert said.count("| all |") == len(blocks)
    assert f"| {blocks[0]} | h1 |" in said


def test_half_size_is_of_a_quarter_of_the_tokens(unet_folder):
    model = Model(unet_folder, half_size=True, steps=2)
    assert model.name == "renderings-unet-half"
    assert {line["tokens"] for line in fingerprint.measure(model, 1, 1)} == {64}


def test_a_folder_without_a_model_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        fingerprint.main(["--model", str(tmp_path)])
    assert (
        "scheduler/scheduler_config.json; allowed: a model's folder, as `asag train` exports it"
        in capsys.readouterr().err
    )
