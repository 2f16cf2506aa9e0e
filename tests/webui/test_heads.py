"""`amount` and heads of a layer, in a request."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from .payloads import REUSE_ROUNDING, asag, assert_differ, assert_same, largest_difference, request
from .server import WebUI

Image = Callable[..., np.ndarray]


def test_an_amount_lies_between_nothing_and_all(plain: Image, guided: Image) -> None:
    """The push is not linear in it, but small ones are nearly so, and 0 is none."""
    assert_same(guided({"amount": 1}), guided())
    assert_same(guided({"amount": 0}), plain())
    assert_differ(guided({"amount": 0.5}), guided())
    assert_differ(guided({"amount": 0.5}), plain())


def test_an_amount_of_0_is_told(webui: WebUI) -> None:
    answer = webui.txt2img(**request(alwayson_scripts=asag(amount=0)))
    assert "amount is 0" in answer.infotexts[0]


@pytest.mark.parametrize("heads", ["h0", "aligned"])
def test_heads_differ_from_the_whole_and_are_the_same_without_a_branch(
    webui: WebUI, guided: Image, plain: Image, heads: str
) -> None:
    chosen = guided({"blocks": f"all:{heads}"})
    assert_differ(chosen, guided({"blocks": "all"}))
    assert_differ(chosen, plain())
    assert largest_difference(chosen, guided({"blocks": f"all:{heads}", "reuse": False})) <= REUSE_ROUNDING


def test_the_aligned_heads_are_told_and_can_be_named(webui: WebUI, guided: Image) -> None:
    answer = webui.txt2img(**request(alwayson_scripts=asag(blocks="mid:aligned")))
    told = "ASAG weakened the heads whose queries and keys agree most: "
    text = answer.infotexts[0]
    assert told in text
    named = text.partition(told)[2].partition('"')[0].split(";")[0].split("\n")[0].strip()
    assert named.startswith("mid.0:h")
    assert_same(guided({"blocks": named}), answer.image)


def test_a_head_that_the_layer_lacks_is_refused(webui: WebUI) -> None:
    answer = webui.txt2img(**request(alwayson_scripts=asag(blocks="mid:h99")))
    assert answer.status >= 400 or "has: heads 0 to" in str(answer.body)
    assert "'mid.0:h99'; mid.0 has: heads 0 to" in str(answer.body)
