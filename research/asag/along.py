"""What the plans are like along sampling: how spread out, how far from doubly stochastic, how soon converged.

`python -m research along --model unet` samples without guidance, so that what is measured is the model's and
not what guidance made of it, and looks at queries and keys of the default blocks at every step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from asag.attention import signed_scale, softmax_rows
from asag.lab.embedded.shipped import start_noise
from asag.sinkhorn import DenseScores
from asag.trace import entropy
from research import arguments
from research.asag.cells import baseline
from research.asag.sampling import Sampler, captions, trained
from research.lines import write_lines

COSTS = ("adversarial", "similarity")
ITERATIONS = (0, 1, 2, 5)  # whose entropy and marginals are written; 0: SoftMax of the cost's kernel alone
_TOLERANCES = (1e-2, 1e-3, 1e-4)
_MOST = 100
_PICTURES, _SEED = 24, 102


@contextmanager
def watched(model: Any) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """While open, each call adds queries and keys, (batch, heads, tokens, head_dim), of the default block's
    self-attention; of the image tokens alone in a transformer. The UNet's are those of the middle block, the
    transformer's those of the middle one of its blocks."""
    if hasattr(model, "mid_block"):
        attention = model.mid_block.attentions[0].transformer_blocks[0].attn1
        sources = (attention.to_q, attention.to_k)
    else:
        attention = model.transformer_blocks[len(model.transformer_blocks) // 2].attn
        sources = (attention.norm_q, attention.norm_k)
    seen: list[tuple[Tensor, Tensor]] = []
    pending: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        heads = output if output.ndim == 4 else output.unflatten(2, (attention.heads, -1)).transpose(1, 2)
        pending.append(heads.detach().clone())
        if len(pending) == 2:
            seen.append((pending[0], pending[1]))
            pending.clear()

    handles = [source.register_forward_hook(keep) for source in sources]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def look(query: Tensor, key: Tensor, cost: str) -> dict[str, Any]:
    """Of the plans of one step, means over pictures and heads, for (batch, heads, n, d):

    entropy: normalised, of the rows of the plan times n, by iteration; columns: mean |column sum - 1| of the same;
    needed: sweeps until the mean |g - g_previous| over keys is below each tolerance, `_MOST` where it never is.
    """
    scale = signed_scale(cost, 1.0, query)
    scores = DenseScores(query.flatten(0, 1).double(), key.flatten(0, 1).double(), scale)
    potential = scores.start()
    found: dict[str, Any] = {"entropy": {}, "columns": {}, "needed": {}}
    moves = []
    for iteration in range(_MOST + 1):
        if iteration in ITERATIONS:
            plan = torch.softmax(scores.logits + potential[:, None], dim=2)
            found["entropy"][str(iteration)] = round(entropy(plan), 5)
            found["columns"][str(iteration)] = float(f"{float((plan.sum(1) - 1).abs().mean()):.3g}")
        swept = scores.sweep(potential)
        moves.append((swept - potential).abs().mean(1))
        potential = swept
        if iteration >= max(ITERATIONS) and float(moves[-1].max()) < min(_TOLERANCES):
            break
    steps = torch.stack(moves)  # (sweeps, heads)
    for tolerance in _TOLERANCES:
        below = steps < tolerance
        first = torch.where(below.any(0), below.int().argmax(0) + 1, _MOST)
        found["needed"][str(tolerance)] = round(float(first.double().mean()), 3)
    return found


def main(argv: list[str] | None = None) -> int:
    args = arguments.along(argv)
    if args.model not in trained():
        args.error(f"--model: {args.model}, which is not trained yet; allowed: {', '.join(trained())}")
    torch.set_num_threads(args.threads)
    sampler = Sampler()
    pipeline = sampler.pipeline(args.model)
    run = baseline(args.model, False)
    with watched(getattr(pipeline, "unet", None) or pipeline.transformer) as seen:
        sampler.batch(run, captions(_PICTURES), start_noise(_PICTURES, _SEED))
    lines = [
        {
            "plan": "along",
            "model": args.model,
            "step": step,
            "steps": run.steps,
            "pictures": _PICTURES,
            "tokens": query.shape[2],
            "largest_logit": round(float((query @ key.transpose(2, 3)).abs().max()) / math.sqrt(query.shape[3]), 3),
            "softmax_entropy": round(entropy(softmax_rows(query, key, query.shape[3] ** -0.5)), 5),
            "costs": {cost: look(query, key, cost) for cost in COSTS},
        }
        for step, (query, key) in enumerate(seen)
    ]
    write_lines(args.out / f"along-{args.model}.jsonl", lines)
    print(f"{len(lines)} steps: {args.out / f'along-{args.model}.jsonl'}")
    return 0
