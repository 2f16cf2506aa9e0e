"""What Forge's model was given in a step, given again: on a double of the host's sampling function."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from asag.blocks import Address
from asag.hosts import other_code
from asag.hosts.forge_step import ForgeStep, SeenStep
from asag.hosts.reuse import Reuse
from asag.models.base import AttentionLayer
from asag.operators import Operator
from tests.support import snapshot

COND, UNCOND = 0, 1


class Attention(nn.Module):
    def forward(self, x):
        return x


class Network(nn.Module):
    """The double of a denoiser: what it predicts depends on everything that it is given, and it pops residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.last = Attention(), Attention()
        self.seen: list[torch.Size] = []
        self.kinds: list[list[int]] = []

    def forward(self, x, timestep, context=None, control=None, transformer_options=None):
        self.seen.append(context.shape)
        out = x * timestep[:, None, None, None] + context.mean(dim=(1, 2))[:, None, None, None]
        if control is not None:
            out = out + control["middle"].pop()
        out = self.attention(out + torch.rand(()))
        self.kinds.append(list((transformer_options or {}).get("cond_or_uncond", [])))
        if control is not None:
            out = out * control["output"].pop()
        return self.last(out)


class Doubling:
    """The double of a family: the perturbed layer doubles what it is given."""

    row_methods = ()

    def replacement(self, layer, original, operator, token_grid):
        return lambda x: 2 * original(x)

    def stages(self, model):
        return [model.attention, model.last]


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
                residual = torch.full((len(group) * x.shape[0], 1, 1, 1), 0.5)
                options["control"] = {"middle": [residual], "output": [-residual]}
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


def step_on(network, x, reuse=False, family=None, cfg_scale=7.0):
    layers = [AttentionLayer(Address("mid", 0, 0), network.attention)]
    return ForgeStep(network, x, 1.5, layers, family or Doubling(), Operator(), reuse or Reuse(False), cfg_scale)


def guide(network, conds, unconds, batches=True, played=None, reuse=None, family=None):
    """A step: the host's pass, then the perturbed one. Gives both predictions and the host."""
    host, x = Host(network, batches), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    step = step_on(network, x, reuse, family)
    torch.manual_seed(3)
    plain = host.run(conds, unconds, x)
    step.remove()
    again = step.predict(lambda given: host.run(given, [], x if played is None else played), conds)
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


class Writing(Network):
    """The double of one that writes to what it is given, as Neo's Krea 2 does to its text."""

    def forward(self, x, timestep, context=None, **others):
        x.mul_(3)
        context.add_(x.mean())
        return super().forward(x, timestep, context=context, **others)


@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize("shares", [False, True], ids=["whole", "shared"])
def test_a_network_that_writes_to_its_inputs_gets_them_as_they_were(shares, control):
    more = {"control": True} if control else {}
    plain, again, _ = guide(Writing(), [cond(4, 0, **more)], [cond(8, 2, **more)], reuse=Reuse(shares))
    torch.testing.assert_close(again, 2 * plain)


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
    step = step_on(network, torch.zeros(1, 4, 8, 8))

    def failing(given):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        step.predict(failing, [cond(4, 0)])
    step.remove()
    assert not network._forward_pre_hooks
    assert "forward" not in network.__dict__
    assert "forward" not in network.attention.__dict__


def test_a_pass_on_a_reference_isnt_the_steps_own(network):
    x = torch.randn(2, 4, 8, 8)
    step = step_on(network, x)
    step.remove()
    modified = {"conditioning_modifiers": [print]}
    assert step.is_of(x.clone(), modified)
    assert not step.is_of(x + 1, modified)
    assert not step.is_of(x[:1], modified)
    assert step.is_of(x + 1, {})


@pytest.mark.parametrize("batches", [True, False])
@pytest.mark.parametrize("control", [{}, {"control": True}])
def test_rows_that_branch_off_are_those_of_a_whole_pass(network, batches, control):
    before, reuse = snapshot(network), Reuse(True)
    conds = [cond(4, 0, **control), cond(8, 1, strength=-0.5, **control)]
    plain, again, host = guide(network, conds, [cond(8, 2, **control)], batches, reuse=reuse)
    torch.testing.assert_close(again, 2 * plain)
    assert (reuse.shared, reuse.whole) == (1, 0)
    assert len(network.seen) == (1 if batches else 3)
    assert host.controls == (0 if not control else len(network.seen))
    # What extensions read about the rows counts the copies; afterwards it's the host's again.
    assert network.kinds == ([[1, 0, 0, 0, 0]] if batches else [[1], [0, 0], [0, 0]])
    network.seen.clear(), network.kinds.clear()
    assert snapshot(network) == before


def test_a_branch_that_fails_is_told_and_costs_nothing_but_time(network):
    class Stateful(nn.Module):
        """The double of an extension's module that has kept something of the host's rows."""

        def forward(self, x):
            if x.shape[0] > 4:
                raise RuntimeError("more rows than before")
            return x

    network.last, reuse = Stateful(), Reuse(True)
    plain, again, host = guide(network, [cond(4, 0, control=True)], [cond(4, 2, control=True)], reuse=reuse)
    torch.testing.assert_close(plain, guide(network, [cond(4, 0, control=True)], [cond(4, 2, control=True)])[0])
    torch.testing.assert_close(again, 2 * plain)
    assert (reuse.shared, reuse.whole, host.controls) == (0, 1, 1)
    assert "in 1 of 1 guided steps: RuntimeError: more rows" in reuse.comment()


@pytest.fixture
def known(monkeypatch):
    """What this file hooks in is known to keep nothing between calls."""
    monkeypatch.setattr(other_code, "STATELESS_CODE", ((__name__, "test_"),))


@pytest.mark.usefixtures("known")
def test_an_extension_that_mixes_rows_is_found_out(network):
    class Mixing(nn.Module):
        """The double of an extension's module that takes the last row for the conditional one."""

        def forward(self, x):
            return x + x[-1:].mean()

    network.last, reuse = Mixing(), Reuse(True)
    network.last.register_forward_hook(lambda module, args, output: None)
    found = guide(network, [cond(4, 0)], [cond(4, 2)], reuse=reuse)
    assert (reuse.shared, reuse.whole) == (0, 1)
    assert "shared work gave another result" in reuse.comment()
    torch.testing.assert_close(found[:2], guide(network, [cond(4, 0)], [cond(4, 2)])[:2])


@pytest.mark.usefixtures("known")
def test_something_foreign_that_does_no_harm_is_checked_once(network):
    network.last.register_forward_hook(lambda module, args, output: output + 1)
    reuse = Reuse(True)
    for step in range(3):
        guide(network, [cond(4, 0)], [cond(4, 2)], reuse=reuse)
        assert len(network.seen) == step + 3
    assert (reuse.shared, reuse.whole, reuse.comment()) == (3, 0, None)


class Placing(Doubling):
    """The double of a family that has to know the latents' size and the length of the text."""

    def __init__(self) -> None:
        self.known: list[tuple[tuple[int, int] | None, int]] = []

    def replacement(self, layer, original, operator, token_grid):
        def forward(x):
            self.known.append((token_grid.latent_size, token_grid.text_tokens))
            return 2 * original(x)

        return forward


@pytest.mark.parametrize(
    ("shares", "counts", "played", "text"),
    [
        (True, False, None, 12),
        (False, False, None, 12),
        (True, True, None, 12),
        (False, False, torch.zeros(2, 4, 8, 8), 4),  # as for anyone: the text isn't repeated
    ],
    ids=["shared", "whole", "whole with all rows", "unmatched"],
)
def test_a_weakened_layer_knows_the_call_that_it_is_in(network, shares, counts, played, text):
    if counts:  # nothing says that it keeps nothing between calls
        network.last.register_forward_hook(lambda module, args, output: None)
    family = Placing()
    guide(network, [cond(4, 0)], [cond(12, 2)], played=played, reuse=Reuse(shares), family=family)
    assert family.known == [((8, 8), text)]


@pytest.mark.parametrize(
    ("kinds", "cfg_scale", "has_cfg"),
    [([UNCOND, COND], 7.0, True), ([UNCOND], 7.0, True), ([COND], 7.0, False), ([UNCOND, COND], 1.0, False)],
)
def test_cfg_changes_a_step_in_which_unconditional_rows_ran(network, kinds, cfg_scale, has_cfg):
    step = step_on(network, torch.zeros(1, 4, 8, 8), cfg_scale=cfg_scale)
    rows = torch.zeros(len(kinds), 4, 8, 8)
    options = {"cond_or_uncond": kinds}
    network(rows, torch.ones(len(kinds)), context=torch.zeros(len(kinds), 4, 4), transformer_options=options)
    step.remove()
    assert step.has_cfg == has_cfg


class Told(Exception):
    """What a step's guard makes of an error."""


@contextmanager
def telling():
    try:
        yield
    except Exception as error:
        raise Told from error


@pytest.mark.parametrize(
    ("args", "output"), [((torch.zeros(1, 4, 8, 8),), None), ((torch.zeros(1, 4, 8, 8), torch.ones(1)), 5)]
)
@pytest.mark.parametrize("computes", [True, False])
def test_what_a_step_stumbles_over_inside_the_hosts_pass_is_told(network, args, output, computes):
    """The host gives the model something else, or the model gives something else."""
    step = step_on(network, args[0]) if computes else SeenStep(network, args[0], 1.5, 7.0)
    step.guard = telling
    network.forward = lambda *args, **others: output
    if not computes and output:
        assert network(*args, transformer_options={"cond_or_uncond": [COND]}) == output
    else:
        with pytest.raises(Told):
            network(*args, transformer_options={"cond_or_uncond": [COND]})
    step.remove()


def test_the_type_that_the_model_computes_in_says_how_near_its_rows_have_to_be(network):
    reuse = Reuse(True)
    step_on(network, torch.zeros(1, 4, 8, 8), reuse)
    rows = torch.zeros(1, 4, 8, 8, dtype=torch.bfloat16)
    options = {"transformer_options": {"cond_or_uncond": [COND]}}
    network(rows, torch.ones(1), context=torch.zeros(1, 4, 4), **options)
    assert reuse.dtype == torch.bfloat16


@pytest.mark.usefixtures("known")
def test_a_patch_of_another_extension_is_reason_to_compare(network):
    def test_patch(x, *others):
        """Named as what keeps nothing between calls."""

    step = step_on(network, torch.zeros(1, 4, 8, 8), Reuse(True))
    assert not step.has_other_code
    options = {"cond_or_uncond": [COND], "patches": {"attn1_patch": [test_patch]}}
    given = torch.zeros(1, 4, 8, 8), torch.ones(1)
    network(*given, context=torch.zeros(1, 4, 4), transformer_options=options)
    assert step.has_other_code
