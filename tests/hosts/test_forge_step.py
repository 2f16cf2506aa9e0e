"""What Forge's model was given in a step, given again: on a double of the host's sampling function."""

import pytest
import torch
from torch import nn

from asag.blocks import Address
from asag.hosts.forge_step import Step
from asag.models.base import AttentionLayer
from tests.support import snapshot

COND, UNCOND = 0, 1


class Attention(nn.Module):
    def forward(self, x):
        return x


class Network(nn.Module):
    """The double of a denoiser: what it predicts depends on everything that it is given, and it pops residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.seen: list[torch.Size] = []

    def forward(self, x, timestep, context=None, control=None, transformer_options=None):
        self.seen.append(context.shape)
        out = x * timestep[:, None, None, None] + context.mean(dim=(1, 2))[:, None, None, None]
        if control is not None:
            out = out + control["middle"].pop()
        return self.attention(out + torch.rand(()))


class Doubling:
    """The double of a family: the perturbed layer doubles what it is given."""

    def replacement(self, layer, original, operator, scene):
        return lambda x: 2 * original(x)


class Host:
    """The double of calc_cond_uncond_batch: uncond first, text repeated to a common length, ControlNet once a call."""

    def __init__(self, network, batches=True) -> None:
        self.network, self.batches, self.controls = network, batches, 0

    def run(self, conds, unconds, x):
        kinds = [(UNCOND, each) for each in unconds] + [(COND, each) for each in conds]
        groups = [kinds] if self.batches else [[each] for each in kinds]
        result = torch.zeros_like(x)
        for group in groups:
            length = max(each["text"].shape[1] for _, each in group)
            texts = [each["text"].repeat(1, length // each["text"].shape[1], 1) for _, each in group]
            options = {"transformer_options": {"cond_or_uncond": [kind for kind, _ in group]}}
            if "control" in group[0][1]:
                self.controls += 1
                options["control"] = {"middle": [torch.full((len(group) * x.shape[0], 1, 1, 1), 0.5)]}
            rows = torch.cat([x] * len(group))
            texts = [text.expand(x.shape[0], -1, -1) for text in texts]
            out = self.network(rows, torch.ones(rows.shape[0]), context=torch.cat(texts), **options)
            for (kind, each), chunk in zip(group, out.chunk(len(group)), strict=True):
                if kind == COND:
                    result = result + each.get("strength", 1.0) * chunk
        return result


def cond(length, seed, **others):
    return {"text": torch.randn(1, length, 4, generator=torch.Generator().manual_seed(seed)), **others}


@pytest.fixture
def network():
    return Network()


def guide(network, conds, unconds, batches=True, played=None):
    """A step: the host's pass, then the perturbed one. Gives both predictions and the host."""
    host, x = Host(network, batches), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    step = Step(network, x, 1.5, "mid")
    torch.manual_seed(3)
    plain = host.run(conds, unconds, x)
    step.remove()
    layers = [AttentionLayer(Address("mid", 0, 0), network.attention)]
    again = step.predict(
        lambda given: host.run(given, [], x if played is None else played), conds, layers, Doubling(), None
    )
    return plain, again, host


@pytest.mark.parametrize("batches", [True, False])
def test_the_same_rows_are_predicted_again(network, batches):
    before = snapshot(network)
    conds = [cond(4, 0), cond(8, 1, strength=-0.5)]
    # Both conditionings fit in one call of the second pass, or take one each: as in the first.
    plain, again, _ = guide(network, conds, [cond(8, 2)], batches)
    # Everything lies before the perturbed layer, the random number too: were another drawn, it wouldn't be twice that.
    torch.testing.assert_close(again, 2 * plain)
    assert snapshot(network) == before


def test_text_keeps_the_length_that_it_had_beside_the_negative_prompt(network):
    guide(network, [cond(4, 0)], [cond(12, 2)])
    assert [shape[1] for shape in network.seen] == [12, 12]


def test_controlnet_runs_once_and_its_residuals_count(network):
    plain, again, host = guide(network, [cond(4, 0, control=True)], [cond(4, 2, control=True)])
    assert host.controls == 1
    torch.testing.assert_close(again, 2 * plain)


def test_another_input_is_predicted_as_the_host_would_for_anyone(network):
    other = torch.zeros(2, 4, 8, 8)
    _, _, host = guide(network, [cond(4, 0, control=True)], [cond(12, 2, control=True)], played=other)
    assert host.controls == 2
    # Unmatched, the conditional text isn't repeated.
    assert [shape[1] for shape in network.seen] == [12, 4]


def test_random_numbers_go_on_as_if_there_had_been_no_second_pass(network):
    guide(network, [cond(4, 0)], [cond(4, 2)])
    after_both = torch.rand(())
    torch.manual_seed(3)
    torch.rand(())
    assert torch.rand(()) == after_both


def test_a_failing_pass_leaves_nothing_behind(network):
    step = Step(network, torch.zeros(1, 4, 8, 8), 1.5, "mid")
    layers = [AttentionLayer(Address("mid", 0, 0), network.attention)]

    def failing(given):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        step.predict(failing, [cond(4, 0)], layers, Doubling(), None)
    step.remove()
    assert not network._forward_pre_hooks
    assert "forward" not in network.__dict__
    assert "forward" not in network.attention.__dict__


def test_a_pass_on_a_reference_isnt_the_steps_own(network):
    x = torch.randn(2, 4, 8, 8)
    step = Step(network, x, 1.5, "mid")
    step.remove()
    modified = {"conditioning_modifiers": [print]}
    assert step.is_of(x.clone(), modified)
    assert not step.is_of(x + 1, modified)
    assert not step.is_of(x[:1], modified)
    assert step.is_of(x + 1, {})
