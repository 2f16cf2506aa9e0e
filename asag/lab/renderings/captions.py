"""Captions such as 'red heart' or 'grinning cat, smileys & emotion' as rows of a table of words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from asag.lab.renderings.names import words

TOKEN_DIM = 128
WORDS = 9  # the most that a caption holds
TOKENS = 2 + WORDS  # a start token that is always the same, the group, then the words
_START, _NULL, _NOTHING = 0, 1, 2  # rows of the table; after them come the groups, then the words
_SPECIAL = 3


class Vocabulary:
    """Groups and words in a fixed order, and captions as rows of a table that holds them."""

    def __init__(self, groups: Sequence[str], known: Sequence[str]) -> None:
        self.groups, self.words = list(groups), list(known)
        self._group_rows = {group: _SPECIAL + i for i, group in enumerate(self.groups)}
        self._word_rows = {word: _SPECIAL + len(self.groups) + i for i, word in enumerate(self.words)}

    @classmethod
    def of(cls, names: Sequence[str], groups: Sequence[str]) -> Vocabulary:
        """The one that `names` and `groups` need, sorted."""
        return cls(sorted(set(groups)), sorted({word for name in names for word in words(name)}))

    def __len__(self) -> int:
        return _SPECIAL + len(self.groups) + len(self.words)

    def rows(self, caption: str) -> list[int]:
        """A caption's rows, TOKENS of them; a group may follow the last comma.

        Raises ValueError, naming the caption, for a word that isn't known, for no word and for too many.
        """
        name, _, group = caption.lower().rpartition(", ")
        if group not in self._group_rows:
            name, group = caption, ""
        found = words(name)
        unknown = [word for word in found if word not in self._word_rows]
        if unknown:
            raise ValueError(f"caption {caption!r}: the model has not learnt {', '.join(unknown)}; see its words.json")
        if not 0 < len(found) <= WORDS:
            raise ValueError(f"caption {caption!r}: {len(found)} words; allowed: 1 to {WORDS}")
        own = [self._word_rows[word] for word in found]
        return [_START, self._group_rows.get(group, _NOTHING), *own, *[_NOTHING] * (WORDS - len(own))]


class Words(nn.Module):
    """Trainable tokens: each is the sum of its word's vector and its place's."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.word = nn.Parameter(0.7 * torch.randn(count, TOKEN_DIM))
        self.place = nn.Parameter(0.3 * torch.randn(TOKENS, TOKEN_DIM))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (B,TOKENS) -> tokens (B,TOKENS,TOKEN_DIM)."""
        tokens: torch.Tensor = self.word[rows] + self.place
        return tokens


def null_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows of no caption, in the shape of `rows` (B,TOKENS)."""
    return torch.full_like(rows, _NULL).index_fill_(1, torch.zeros(1, dtype=torch.long, device=rows.device), _START)


def dropped_rows(rows: torch.Tensor, caption: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Rows (B,TOKENS) without the caption, and without the group, where (B,) bool say so."""
    without = rows.clone()
    without[:, 1] = torch.where(group, _NOTHING, rows[:, 1])
    return torch.where(caption[:, None], null_rows(rows), without)
