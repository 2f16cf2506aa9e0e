"""Is a model in the regime of ASAG's paper? `python -m research fingerprint --model FOLDER`.

The paper's fingerprint: with ASAG's cost the plan converges in about 2 sweeps, with the opposite cost in about 10. That
needs queries and keys that agree. For each layer, each of its heads and some noise levels this writes:

    cosine      the mean over tokens of cos(q_i, k_i)
    sweeps      until the mean |g - g_previous| over keys is below 1e-1, 1e-2, 1e-3, for both costs; MOST where it
                never is. The paper doesn't say which tolerance it has; what is chosen here is chosen by 1e-3
    to_uniform  the cosine of δ of ASAG and δ of the uniform map, weakened there alone
    size        the RMS of ASAG's δ beside that of what CFG adds per unit, ε(x, c) - ε(x)

Pictures are sampled with CFG alone, so that what is measured is the model's and not what guidance made of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from asag.attention import signed_scale
from asag.chosen_heads import alignment
from asag.guidance import rms
from asag.hosts.diffusers_call import token_grid_of
from asag.hosts.diffusers_models import FAMILIES
from asag.models.base import AttentionLayer, Family, family_of, head_count
from asag.operators import Operator, make_operator
from asag.perturb import choose_layers, perturbed, slice_rows
from asag.sinkhorn import DenseScores
from research import arguments
from research.asag.along import COSTS
from research.asag.cell.model import CFG, Model
from research.device import device_of
from research.lines import Line, markdown, write_lines

TOLERANCES = (1e-1, 1e-2, 1e-3)
MOST = 500  # with 50 a head that takes 127 looked as if it took hardly more than the others
_LOOK_EVERY = 4  # sweeps: which heads are done, for which a GPU has to be waited for
_CAPTIONS_SEED, _NOISE_SEED = 40_000, 104


def sweeps(query: Tensor, key: Tensor, cost: str) -> Tensor:
    """How many sweeps plans take to each tolerance, (batch, heads, tolerances) float64, for (batch, heads, n, d)."""
    scale, least = signed_scale(cost, 1.0, query), query.new_tensor(TOLERANCES, dtype=torch.float64)
    scores = DenseScores(query.flatten(0, 1).double(), key.flatten(0, 1).double(), scale)
    potential, moving = scores.start(), torch.arange(len(scores.logits), device=query.device)
    needed = least.new_full((len(moving), len(least)), MOST)
    for sweep in range(1, MOST):
        swept = scores.sweep(potential)
        change, potential = (swept - potential).abs().mean(1, keepdim=True), swept
        needed[moving] = torch.where(change < least, needed[moving].clamp(max=sweep), needed[moving])
        if sweep % _LOOK_EVERY == 0:
            # Heads differ much in how many they take.
            left = needed[moving].amax(1) == MOST
            moving, potential, scores.logits = moving[left], potential[left], scores.logits[left]
        if not len(moving):
            break
    found: Tensor = needed.unflatten(0, query.shape[:2]).cpu()
    return found


@dataclass
class Recorder(Operator):
    """Attends as `inner`, and keeps the queries and keys of the image tokens that it saw last."""

    inner: Operator
    seen: list[Tensor] = field(default_factory=list)

    def plain(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        self.seen = [query, key]
        return self.inner.plain(query, key, value, grid)

    def joint(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        image: slice,
        grid: tuple[int, int] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        self.seen = [query[:, :, image], key[:, :, image]]
        return self.inner.joint(query, key, value, image, grid, mask)


def levels_of(steps: int, levels: int) -> list[int]:
    """`levels` numbers of steps, evenly spread from the first to the last."""
    return sorted({int((level + 0.5) / levels * steps) for level in range(levels)})


@dataclass
class Look:
    """One call of the network, on the rows with a caption: what it predicts, and weakened in a layer or a head."""

    network: nn.Module
    family: Family
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    clean: Tensor
    cfg: Tensor

    def push(self, layers: Sequence[AttentionLayer], operator: Operator) -> Tensor:
        with perturbed(layers, self.family, operator, token_grid_of(self.args, self.kwargs)):
            weakened: Tensor = self.network.forward(*self.args, **self.kwargs)[0]
        return self.clean - weakened

    def compared(self, layers: Sequence[AttentionLayer], asag: Operator) -> dict[str, float]:
        """ASAG's δ in `layers`: how like the uniform map's, and how large."""
        push, uniform = self.push(layers, asag), self.push(layers, make_operator("uniform"))
        alike = nn.functional.cosine_similarity(push.flatten(1), uniform.flatten(1))
        return {"to_uniform": float(alike.mean()), "size": float((rms(push) / rms(self.cfg)).mean())}

    def lines(self) -> Iterator[Line]:
        """A line for each layer, with `head` None, and for each of its heads."""
        for layer in choose_layers(self.network, self.family, "all"):
            recorder = Recorder(make_operator("asag"))
            whole = self.compared([layer], recorder)
            query, key = recorder.seen
            cosines = alignment(query, key).double().mean(0)
            needed = {cost: sweeps(query, key, cost).mean(0) for cost in COSTS}
            about = {"block": str(layer.address), "tokens": query.shape[2]}
            for head in (None, *range(head_count(layer.module) or query.shape[1])):
                rows = slice(None) if head is None else slice(head, head + 1)
                figures = {"cosine": float(cosines[rows].mean())}
                for cost, each in needed.items():
                    named = zip(TOLERANCES, each[rows].mean(0).tolist(), strict=True)
                    figures |= {f"{cost} {tolerance:g}": value for tolerance, value in named}
                if head is None:
                    figures |= whole
                else:
                    text = f"{layer.address}:h{head}"
                    figures |= self.compared(choose_layers(self.network, self.family, text), make_operator("asag"))
                yield about | {"head": head} | {name: float(f"{value:.4g}") for name, value in figures.items()}


@contextmanager
def looking(network: nn.Module, at: Sequence[int]) -> Iterator[list[tuple[int, list[Line]]]]:
    """While open, the calls whose numbers are in `at` add their lines. Rows are [without, with] captions."""
    family = family_of(network, FAMILIES)
    found: list[tuple[int, list[Line]]] = []
    calls = iter(range(10_000))

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        number = next(calls)
        if number not in at:
            return
        uncond, cond = output[0].chunk(2)
        total = len(output[0])
        given = [slice_rows(each, slice(total // 2, total), total) for each in (args, kwargs)]
        found.append((number, list(Look(network, family, given[0], given[1], cond, cond - uncond).lines())))

    handle = network.register_forward_hook(look, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


@torch.no_grad()
def measure(model: Model, pictures: int, levels: int) -> list[Line]:
    """A line for each noise level, layer and head."""
    asked = model.asked(pictures, _CAPTIONS_SEED)
    at = levels_of(model.steps, levels)
    with looking(model.network, at) as found:
        model.sample(asked, model.noise(pictures, _NOISE_SEED), {})
    about = {"plan": "fingerprint", "model": model.name, "weights": model.weights(), "guidance_scale": CFG}
    about |= {"steps": model.steps, "pictures": pictures}
    return [about | {"step": number} | line for number, lines in found for line in lines]


SWEEPS = tuple(f"{cost} {tolerance:g}" for tolerance in TOLERANCES for cost in COSTS)
FIGURES = ("cosine", *SWEEPS, "to_uniform", "size")


def means(lines: Sequence[Line]) -> dict[tuple[str, int | None], dict[str, float]]:
    """The figures of each layer and head, means over the noise levels, in the order of the lines."""
    groups: dict[tuple[str, int | None], list[Line]] = defaultdict(list)
    for line in lines:
        groups[line["block"], line["head"]].append(line)
    return {
        place: {name: sum(line[name] for line in rows) / len(rows) for name in FIGURES}
        for place, rows in groups.items()
    }


def ratio(figures: Mapping[str, float]) -> float:
    """How many times the sweeps of ASAG's cost the opposite cost takes; about 5 in the paper."""
    return figures[f"similarity {TOLERANCES[-1]:g}"] / figures[f"adversarial {TOLERANCES[-1]:g}"]


def table(lines: Sequence[Line]) -> str:
    """Means over the noise levels, in Markdown: a row for each layer and each head."""
    rows = []
    for (block, head), figures in means(lines).items():
        shown = [f"{figures[name]:.1f}" for name in SWEEPS]
        rest = [f"{ratio(figures):.2f}", f"{figures['to_uniform']:.3f}", f"{figures['size']:.3f}"]
        rows.append([block, "all" if head is None else f"h{head}", f"{figures['cosine']:.2f}", *shown, *rest])
    costs = {"adversarial": "ASAG", "similarity": "opposite"}
    titles = [f"{costs[cost]}, {tolerance:g}" for tolerance in TOLERANCES for cost in COSTS]
    return markdown(["block", "head", "cos(q, k)", *titles, "ratio", "cos to uniform's δ", "size"], rows)


def main(argv: list[str] | None = None) -> int:
    args = arguments.fingerprint(argv)
    device = device_of(args)
    model = Model(args.model, args.half_size, args.steps, device)
    lines = measure(model, args.pictures, args.levels)
    path = args.out / f"fingerprint-{model.name}.jsonl"
    write_lines(path, lines)
    print(table(lines))
    print(f"{len(lines)} lines: {path}")
    return 0
