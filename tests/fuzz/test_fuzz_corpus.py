"""The inputs that atheris found, each of which reached something that none before it had."""

from __future__ import annotations

import pytest

from tests.fuzz.parsers import PARSERS, corpus, one_input


@pytest.mark.parametrize("parser", range(len(PARSERS)), ids=[each.__name__ for each in PARSERS])
def test_inputs_that_were_found_are_read_or_refused_as_documented(parser: int) -> None:
    inputs = [data for data in corpus() if data and data[0] % len(PARSERS) == parser]
    assert inputs
    for data in inputs:
        one_input(data)
