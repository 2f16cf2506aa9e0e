"""The figures of `research control`: a row for each way, a column for each of the first names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from asag.lab.embedded.shipped import to_pil

SHOWN = 8


def draw(rows: Mapping[str, Tensor], names: Sequence[str], path: Path) -> None:
    """A PNG of the first pictures of each row, pictures (N,3,64,64) in [-1,1]."""
    columns = min(SHOWN, len(names))
    figure = Figure(figsize=(1.31 * columns + 0.4, 1.31 * len(rows) + 0.4), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    top = next(iter(rows))
    for places, (row, images) in zip(grid, rows.items(), strict=True):
        for axes, name, picture in zip(places, names, to_pil(images[:columns], scale=2), strict=False):
            axes.imshow(picture)
            axes.set(xticks=[], yticks=[])
            if row == top:
                axes.set_title(name.replace(" ", "\n", 1), fontsize=9)
        places[0].set_ylabel(row.replace(" + ", "\n+ "), fontsize=9, fontweight="bold")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
