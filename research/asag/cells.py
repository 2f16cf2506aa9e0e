"""What a plan is made of: cells, which are runs with a place in the tables, and the captions and noise they have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from asag.lab import papers
from research.asag.sampling import CAPTIONS_SEED, Run

METHODS = tuple(papers.SCALES)  # ASAG last, as in the tables of its paper
CFG = 2.0
MAIN_CAPTIONS, MAIN_SEEDS = 2000, (1, 2, 3)
_FRESH_SEEDS, _FRESH_CAPTIONS_SEED = (4, 5, 6), 22_000
_SEARCH_CAPTIONS, _SEARCH_SEEDS, _SEARCH_CAPTIONS_SEED = 500, (101,), 21_000


@dataclass(frozen=True)
class Cell:
    """A run and its place in the tables. Differences are taken to `baseline`, and to `rival`, where there is one:
    ASAG in the same protocol."""

    plan: str
    protocol: str
    method: str
    run: Run
    baseline: Run
    rival: Run | None = None

    @property
    def condition(self) -> str:
        return self.run.condition


@dataclass(frozen=True)
class Plan:
    """Cells, and what they are sampled with unless the command says otherwise."""

    cells: tuple[Cell, ...]
    captions: int
    seeds: tuple[int, ...]
    captions_seed: int = CAPTIONS_SEED

    @classmethod
    def main(cls, cells: Iterable[Cell]) -> Plan:
        """With the main tables' captions and noise, which no search sees."""
        return cls(tuple(cells), MAIN_CAPTIONS, MAIN_SEEDS)

    @classmethod
    def fresh(cls, cells: Iterable[Cell]) -> Plan:
        """With as many, which neither a search nor another table sees."""
        return cls(tuple(cells), MAIN_CAPTIONS, _FRESH_SEEDS, _FRESH_CAPTIONS_SEED)

    @classmethod
    def search(cls, cells: Iterable[Cell]) -> Plan:
        """With fewer pictures, and captions and noise that the main tables don't use."""
        return cls(tuple(cells), _SEARCH_CAPTIONS, _SEARCH_SEEDS, _SEARCH_CAPTIONS_SEED)


def baseline(model: str, conditional: bool, **rest: Any) -> Run:
    """What guidance is added to: no guidance without captions, CFG with them."""
    return Run.of(model, conditional, **{"guidance_scale": CFG if conditional else 1.0, **rest})


def guided(base: Run, settings: dict[str, Any]) -> Run:
    return Run.of(base.model, base.conditional, settings, guidance_scale=base.guidance_scale, steps=base.steps)


def unguided(plan: str, base: Run, protocol: str = "search", rival: Run | None = None) -> Cell:
    """The cell that guidance is added to."""
    return Cell(plan, protocol, "vanilla" if base.guidance_scale == 1.0 else "cfg", base, base, rival)
