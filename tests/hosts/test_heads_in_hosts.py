"""`amount` and heads in whole requests, against the definition: a real UNet in the doubles of A1111 and Forge."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from asag.hosts.refused import Refused
from tests.hosts import a1111_double, forge_double, test_a1111, test_forge_arithmetic
from tests.hosts.guided import FIRST, HIRES, assert_steps, guided
from tests.hosts.reference import most_aligned_heads, part_of, real_unet
from tests.support import snapshot

CONSTANT = [[2.0] * 2]
HOSTS = {"a1111": (test_a1111, a1111_double), "forge": (test_forge_arithmetic, forge_double)}


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return real_unet()


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest, unet: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Any:
    module, double = HOSTS[request.param]
    for host in module.host.__wrapped__(unet, monkeypatch):
        host.new_options = double.Options
        yield host


@pytest.mark.parametrize("reuse", [True, False], ids=["shared", "whole"])
@pytest.mark.parametrize("amount", [0.3, 1.0])
def test_a_part_of_the_weakened_attention(host: Any, amount: float, reuse: bool) -> None:
    found = guided(host, host.new_options(), amount=amount, reuse=reuse)
    assert_steps(host, found, CONSTANT, attention_map=part_of(amount))


@pytest.mark.parametrize("reuse", [True, False], ids=["shared", "whole"])
def test_some_heads(host: Any, reuse: bool) -> None:
    found = guided(host, host.new_options(), blocks="mid:h1,3", amount=0.6, reuse=reuse)
    assert_steps(host, found, CONSTANT, attention_map=part_of(0.6, (1, 3)))
    assert host.comments == []


@pytest.mark.parametrize("reuse", [True, False], ids=["shared", "whole"])
def test_the_aligned_head_is_that_of_the_first_step_in_all_of_them_and_is_told(host: Any, reuse: bool) -> None:
    options = host.new_options(passes=[FIRST, HIRES])
    heads = most_aligned_heads(host.unet, "mid", FIRST[0], options.timesteps[0], host.prompts)
    found = guided(host, options, blocks="mid:aligned", reuse=reuse)
    assert_steps(host, found, CONSTANT * 2, maps=[part_of(1.0, (head,)) for head in heads])
    told = " or ".join(f"h{head}" for head in dict.fromkeys(heads))
    assert host.comments == [f"ASAG weakened the heads whose queries and keys agree most: mid.0:{told}"]


def test_the_hires_pass_has_heads_of_its_own(host: Any) -> None:
    found = guided(host, host.new_options(passes=[FIRST, HIRES]), blocks="mid:h0", hires_blocks="mid:h2-3")
    for passes, heads, of_pass in (([FIRST], (0,), found[:2]), ([HIRES], (2, 3), found[2:])):
        host.options = host.new_options(passes=passes)
        assert_steps(host, of_pass, CONSTANT, attention_map=part_of(1.0, heads))


def test_a_head_that_the_layer_lacks_is_refused_before_sampling(host: Any) -> None:
    before = snapshot(host.network())
    with pytest.raises(Refused, match=r"^ASAG settings: blocks: 'mid.0:h4'; mid.0 has: heads 0 to 3$") as refused:
        guided(host, host.new_options(), blocks="mid:h4")
    assert refused.value.status_code == 422
    assert snapshot(host.network()) == before
