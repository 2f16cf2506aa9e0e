"""Captions as rows, and what is dropped of them."""

import pytest
import torch

from asag.lab.renderings.captions import TOKENS, WORDS, Vocabulary, dropped_rows, null_rows

VOCABULARY = Vocabulary.of(["red heart", "family: man, boy"], ["symbols", "people & body"])


def test_words_and_groups_have_rows_of_their_own():
    assert VOCABULARY.groups == ["people & body", "symbols"]
    assert VOCABULARY.words == ["boy", "family", "heart", "man", "red"]
    rest = [2] * (WORDS - 2)
    assert VOCABULARY.rows("Red heart") == [0, 2, 9, 7, *rest]
    assert VOCABULARY.rows("red heart, symbols") == [0, 4, 9, 7, *rest]
    assert len(VOCABULARY) == 10


def test_a_comma_within_a_name_begins_no_group():
    assert VOCABULARY.rows("family: man, boy")[1:5] == [2, 6, 8, 5]


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("red hart", "caption 'red hart': the model has not learnt hart"),
        ("", "caption '': 0 words; allowed: 1 to 9"),
        ("red " * 10, "10 words; allowed: 1 to 9"),
    ],
)
def test_a_caption_that_cannot_be_read_is_named(caption, message):
    with pytest.raises(ValueError, match=message):
        VOCABULARY.rows(caption)


def test_dropping_a_caption_leaves_the_start_and_dropping_a_group_the_words():
    rows = torch.tensor([VOCABULARY.rows("red heart, symbols")] * 3)
    caption, group = torch.tensor([[True, False, False], [False, True, False]])
    found = dropped_rows(rows, caption, group)
    assert found[0].tolist() == [0] + [1] * (TOKENS - 1) == null_rows(rows)[0].tolist()
    assert found[1].tolist() == VOCABULARY.rows("red heart")
    assert torch.equal(found[2], rows[2])
