"""What Forge and its relatives tell the modules of a model about the rows of a batch.

Source: calc_cond_uncond_batch (backend/sampling/sampling_function.py; reForge: ldm_patched/modules/samplers.py), which
puts it into transformer_options.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from asag.guidance import picked_rows

COND, UNCOND = 0, 1
PER_CONDITIONING = ("cond_or_uncond", "uuids")


class RowLists:
    """Keeps transformer_options true while a branch adds rows to the batch (asag.branch.Tell)."""

    def __init__(self, options: dict[str, Any], total: int) -> None:
        self.options = options
        self.images = total // len(options["cond_or_uncond"])
        names = (*PER_CONDITIONING, "cond_mark", "cond_indices", "uncond_indices")
        self.before = {name: options[name] for name in names if name in options}

    def tell(self, rows: Sequence[int]) -> None:
        """From now on row i of the batch is, or is a copy of, the host's row rows[i]."""
        for name, value in self.before.items():
            if name in PER_CONDITIONING:
                self.options[name] = [value[row // self.images] for row in rows[:: self.images]]
            elif isinstance(value, Tensor):
                self.options[name] = picked_rows(value, rows)
            else:
                self.options[name] = [index for index, row in enumerate(rows) if row in value]


def cond_rows(x: Tensor, others: dict[str, Any]) -> slice | None:
    """The conditional rows of a call: contiguous, as the host batches conditionings; None when there are none."""
    kinds = (others.get("transformer_options") or {}).get("cond_or_uncond")
    if not kinds or COND not in kinds:
        return None
    size = x.shape[0] // len(kinds)
    first, count = kinds.index(COND), kinds.count(COND)
    if kinds[first : first + count] != [COND] * count:
        return None
    return slice(first * size, (first + count) * size)


def weight(conds: list[dict[str, Any]]) -> float:
    """What makes the host's mean over conditionings, weighted by w / Σw, one weighted by w / Σ|w|."""
    weights = [cond.get("strength", 1.0) for cond in conds]
    total = sum(abs(each) for each in weights)
    return sum(weights) / total if total else 1.0


def has_uncond(others: dict[str, Any]) -> bool:
    """Whether a call has unconditional rows."""
    return UNCOND in ((others.get("transformer_options") or {}).get("cond_or_uncond") or [])
