"""How many pictures a cell is made of, and which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from research.asag import sampling
from research.lines import Line


@dataclass(frozen=True)
class Size:
    """How many captions, which seeds of noise, and the captions' own seed."""

    captions: int
    seeds: tuple[int, ...]
    captions_seed: int = sampling.CAPTIONS_SEED

    @classmethod
    def of(cls, line: Line) -> Size:
        seeds = tuple(line["seeds"])
        return cls(line["samples"] // len(seeds), seeds, line["captions_seed"])

    @property
    def samples(self) -> int:
        return self.captions * len(self.seeds)

    def fields(self) -> dict[str, Any]:
        """As a line has it."""
        return {"samples": self.samples, "seeds": list(self.seeds), "captions_seed": self.captions_seed}

    def within(self, line: Line) -> bool:
        """Whether a line is of all these pictures, and maybe more."""
        its = Size.of(line)
        enough = its.captions >= self.captions and set(its.seeds) >= set(self.seeds)
        return enough and its.captions_seed == self.captions_seed

    def parts(self) -> list[sampling.Part]:
        starts = range(0, self.captions, sampling.PART)
        counts = [min(sampling.PART, self.captions - start) for start in starts]
        return [
            sampling.Part(seed, i, count, self.captions_seed) for seed in self.seeds for i, count in enumerate(counts)
        ]
