"""Which rows Forge's model gets in the second pass, and whether the host's own pass would repeat; on test_forge_step's
doubles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from asag.hosts.forge_step import SAME
from tests.hosts import test_forge_step
from tests.hosts.test_forge_step import COND, UNCOND, Host, Network, cond, guide, step_on

network = test_forge_step.network  # a fixture


@pytest.mark.parametrize("control", [{}, {"control": True}])
def test_the_second_pass_is_of_the_conditional_rows_and_says_so(network: Network, control: dict[str, Any]) -> None:
    guide(network, [cond(4, 0, **control), cond(4, 1, **control)], [cond(4, 2, **control)])
    assert [shape[0] for shape in network.seen] == [6, 4]
    assert network.kinds == [[UNCOND, COND, COND], [COND, COND]]


def test_the_second_pass_takes_one_call_for_each_of_the_first(network: Network) -> None:
    guide(network, [cond(4, 0), cond(4, 1)], [cond(4, 2)], batches=False)
    assert [shape[0] for shape in network.seen] == [2, 2, 2, 2, 2]
    assert network.kinds == [[UNCOND], [COND], [COND], [COND], [COND]]


@pytest.mark.parametrize("control", [{}, {"control": True}])
def test_a_pass_repeats_without_the_model_and_without_controlnet(network: Network, control: dict[str, Any]) -> None:
    host, x = Host(network, batches=False), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    conds = [cond(4, 0, **control), cond(4, 1, strength=-0.5, **control)]
    step = step_on(network, x)
    plain = host.run(conds, [cond(4, 2, **control)], x)
    step.remove()
    calls, controls = len(network.seen), host.controls

    def again(given: list[dict[str, Any]]) -> Tensor:
        return host.run(given, [], x)

    assert step.repeats(again, conds, plain)
    assert step.repeats(again, conds, plain * (1 + 0.9 * SAME))
    assert not step.repeats(again, conds, plain * (1 + 1.1 * SAME))
    assert not step.repeats(lambda given: host.run(given, [], x[:1]), conds, plain)
    assert (len(network.seen), host.controls) == (calls, controls)
