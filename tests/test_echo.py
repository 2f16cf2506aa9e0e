"""What error messages show of values from outside."""

import pytest

from asag.echo import shown, shown_names


@pytest.mark.parametrize("value", ["mid", 1.5, None, [1, "two"], {"a": 1}, "it's"])
def test_short_values_are_shown_as_python_writes_them(value):
    assert shown(value) == repr(value)


def test_long_values_are_cut_and_their_length_told():
    assert shown("é" * 61) == repr("é" * 60) + "… (61 characters)"
    assert shown([1] * 1000).endswith("… (3000 characters)")
    assert len(shown([1] * 1000)) < 90
    assert shown("a" * 60) == repr("a" * 60)


def test_what_cant_be_written_is_named_by_its_kind():
    nested = []
    for _ in range(100_000):
        nested = [nested]
    assert shown(nested) == "a list"


def test_names():
    assert shown_names(["a", "b"]) == "a, b"
    assert shown_names(list("abcdefgh")) == "a, b, c, d, e, f, g, h"
    assert shown_names([f"n{number}" for number in range(10)]) == "n0, n1, n2, n3, n4, n5, n6, n7 and 2 more"
    assert shown_names(["x" * 1000]) == "x" * 60
    # A log's line and an answer in UTF-8 can hold it.
    assert shown_names(["a\nb", "\ud800", "Überholt 🎨", 3, 10**5000]) == r"a\nb, \ud800, Überholt 🎨, 3, a int"
    assert shown_names([]) == ""
