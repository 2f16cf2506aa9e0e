"""The operator that remembers how many tokens its layers had."""

import pytest
import torch

from asag.blocks import Address
from asag.counted import Counted
from asag.operators import METHODS, make_operator


def tensors(tokens: int):
    generator = torch.Generator().manual_seed(tokens)
    return [torch.randn(1, 2, tokens, 4, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("method", METHODS)
def test_what_it_computes_is_the_operators(method):
    operator = make_operator(method)
    counted, given, image = Counted(operator), tensors(6), slice(2, 6)
    assert torch.equal(counted.plain(*given, (2, 3)), operator.plain(*given, (2, 3)))
    assert torch.equal(counted.joint(*given, image), operator.joint(*given, image))
    chosen = torch.tensor([1])
    assert torch.equal(counted.map_rows(*given[:2], chosen), operator.map_rows(*given[:2], chosen))
    assert counted.tokens == {4, 6}


@pytest.mark.parametrize(
    ("plain", "joint", "nothing"), [((), (), False), ((1, 1), (), True), ((), (1,), True), ((1, 4), (), False)]
)
def test_one_token_in_every_layer_changes_nothing(plain, joint, nothing):
    counted = Counted(make_operator("asag"))
    layer = counted.at(Address("mid", 0, 0))
    for tokens in plain:
        layer.plain(*tensors(tokens))
    for tokens in joint:
        layer.joint(*tensors(3 + tokens), slice(3, 3 + tokens))
    assert counted.changes_nothing == nothing


@pytest.mark.parametrize("method", METHODS)
def test_one_tokens_attention_is_its_value(method):
    query, key, value = tensors(1)
    torch.testing.assert_close(make_operator(method).plain(query, key, value, (1, 1)), value)
