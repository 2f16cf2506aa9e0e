"""What half precision does to δ, and whether shared work adds anything but rounding.

δ is the difference of two predictions that are nearly alike, so it carries their rounding. Each δ here is compared with
that of the same rounded weights and inputs in float64. The yardstick is SoftMax's δ: ordinary attention takes the place
of itself there, so the true δ is 0, and all that is found is rounding.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asag.hosts.diffusers_call import token_grid_of
from asag.hosts.diffusers_models import FAMILIES, denoiser_of
from asag.hosts.diffusers_pipeline import asag_guidance
from asag.models.base import family_of
from asag.operators import Operator
from asag.perturb import branching, choose_layers, perturbed, slice_rows
from asag.precision import at_least_float32
from asag.settings import AsagSettings
from research import arguments
from research.lines import markdown, read_lines, replace_text, write_lines
from research.precision import models
from research.precision.models import ALONE, BACKWARDS, TOGETHER, Built, Orders

TEXT = Path(__file__).parent / "text.md"
HEADINGS = {
    "delta_to_prediction": "δ / prediction",
    "error_whole": "error, whole pass",
    "softmax_whole": "SoftMax, whole pass",
    "error_shared": "error, shared work",
    "softmax_shared": "SoftMax, shared work",
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WAYS = ("whole", "shared")
Record = dict[str, Any]


class Softmax(Operator):
    """Ordinary attention in place of itself, in float32 and by two products: its rounding isn't the model's own."""

    def plain(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        query, key, wide = (at_least_float32(each) for each in (query, key, value))
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        out: Tensor = (scores.softmax(-1) @ wide).to(value.dtype)
        return out

    def joint(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        image: slice,
        grid: tuple[int, int] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        return self.plain(query, key, value)


@torch.no_grad()
def delta(built: Built, operator: Operator, shared: bool) -> Tensor:
    """δ of one call of the model, (images, …) float64, subtracted in the model's dtype as the adapters do."""
    model = denoiser_of(built.pipeline)
    family = family_of(model, FAMILIES)
    layers = choose_layers(model, family, built.blocks)
    grid = token_grid_of((), built.call)
    rows = next(iter(built.call.values())).shape[0]
    cond = slice(rows // 2, rows)
    if shared:
        with branching(model, layers, family, operator, grid, cond, rows) as branch:
            output = model(**built.call, return_dict=False)[0]
        normal, weakened = branch.split(output)
    else:
        normal = model(**built.call, return_dict=False)[0]
        with perturbed(layers, family, operator, grid):
            weakened = model(**slice_rows(built.call, cond, rows), return_dict=False)[0]
    difference: Tensor = (normal[cond] - weakened).double()
    return difference


def size(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt())


def of_delta(name: str, dtype: torch.dtype) -> Record:
    """How far δ is from that in float64, and how large SoftMax's δ is, as shares of δ, whole and shared."""
    asag = AsagSettings.from_mapping({}).operator
    built = models.build(name, dtype)
    exact = models.widened(built)
    true = delta(exact, asag(), shared=False)
    found: Record = {"model": name, "dtype": str(dtype).removeprefix("torch.")}
    found["delta_to_prediction"] = size(true) / size(models.prediction(exact))
    for way in WAYS:
        found[f"error_{way}"] = size(delta(built, asag(), way == "shared") - true) / size(true)
        found[f"softmax_{way}"] = size(delta(built, Softmax(), way == "shared")) / size(true)
    return found


@dataclass(frozen=True)
class Change:
    """Two ways to make the same pictures: the second differs from the first in what `name` says."""

    name: str
    first: Callable[[Built], Tensor]
    second: Callable[[Built], Tensor]


def pictures(built: Built, order: Orders = TOGETHER, **settings: Any) -> Tensor:
    """The finished latents (images, …) of a run with CFG, guided where there are settings."""
    guided: AbstractContextManager[Any] = asag_guidance(built.pipeline, **settings) if settings else nullcontext()
    with guided:
        return built.sample(order)


def _changes(scale: float, blocks: str) -> list[Change]:
    shared = partial(pictures, scale=scale, blocks=blocks)
    return [
        Change("guidance", pictures, shared),
        Change("again", shared, shared),
        Change("sharing", partial(shared, reuse=False), shared),
        Change("other place in the batch", shared, partial(shared, order=BACKWARDS)),
        Change("one by one", shared, partial(shared, order=ALONE)),
    ]


@torch.no_grad()
def of_pictures(name: str, dtype: torch.dtype) -> Record:
    """Root mean square changes of the finished latents, as shares of what guidance changes."""
    built = models.build(name, dtype)
    changes = {each.name: each for each in _changes(built.scale, built.blocks)}
    moved = {key: size(each.second(built) - each.first(built)) for key, each in changes.items()}
    shares = {key: value / moved["guidance"] for key, value in moved.items() if key != "guidance"}
    return {"model": name, "dtype": str(dtype).removeprefix("torch."), **shares}


def measure() -> Iterator[Record]:
    """A line of δ and one of pictures for each model and dtype."""
    for name in models.NAMES:
        for dtype in DTYPES:
            yield {"of": "delta", **of_delta(name, dtype)}
            yield {"of": "pictures", **of_pictures(name, dtype)}


def page(records: list[Record]) -> str:
    """The page in Markdown: what the tables say, and the tables."""
    tables = {of: _table([each for each in records if each["of"] == of]) for of in ("delta", "pictures")}
    return TEXT.read_text(encoding="utf-8").format(**tables)


def _table(records: list[Record]) -> str:
    columns = [key for key in records[0] if key != "of"]
    rows = [[f"{v:.2g}" if isinstance(v := each[key], float) else str(v) for key in columns] for each in records]
    return markdown([HEADINGS.get(key, key) for key in columns], rows)


def main(argv: list[str] | None = None) -> int:
    args = arguments.precision(argv)
    torch.set_num_threads(args.threads)
    path = args.out / "results" / "precision.jsonl"
    lines = [] if args.measure else read_lines(path)
    for found in measure() if args.measure else ():
        lines.append(found)
        print(json.dumps(found), flush=True)
    write_lines(path, lines)
    replace_text(args.out / "README.md", page(lines))
    return 0
