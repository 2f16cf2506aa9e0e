"""The scales of two protocols: those that push equally far, and each method's best."""

from __future__ import annotations

from pathlib import Path

import torch

from asag.lab import embedded, papers
from asag.lab.evidence.lines import read_lines
from asag.lab.evidence.plans import METHODS, Scales, baseline, guided
from asag.lab.evidence.runs import Run, Sampler, captions

_PICTURES = 48
_SEED = 102
_ROUNDS = 4  # of the fixed point, which converges since the size of δ changes slowly with the scale


def push(sampler: Sampler, run: Run) -> float:
    """Mean over guided steps and 48 pictures of the RMS of s δ, along the run's own trajectory."""
    _, trace = sampler.batch(run, captions(_PICTURES), embedded.start_noise(_PICTURES, _SEED), figures=True)
    pushes = [torch.tensor(step.scales) * torch.tensor(step.sizes) for step in trace.passes[0].steps]
    return float(torch.stack(pushes).mean())


def calibrate(sampler: Sampler, model: str, scales: Scales, steps: int | None = None) -> None:
    """Find for each method the scale whose push is that of ASAG at the paper's scale, within 1 %."""
    for conditional in (False, True):
        base = baseline(model, conditional, steps=steps)
        aim = push(sampler, guided(base, {"method": "asag", "scale": papers.SCALES["asag"]}))
        found = {"asag": papers.SCALES["asag"]}
        for method in METHODS[:-1]:
            scale = papers.SCALES["asag"]
            for _ in range(_ROUNDS):
                size = push(sampler, guided(base, {"method": method, "scale": scale}))
                if abs(size / aim - 1) < 0.01:
                    break
                scale = float(f"{scale * aim / size:.3g}")
            found[method] = scale
            print(f"{model} {'conditional' if conditional else 'unconditional'} {method}: {scale:g}", flush=True)
        scales.put(model, "conditional" if conditional else "unconditional", "norm", found)


def choose_best(path: Path, model: str, scales: Scales) -> None:
    """Of the lines of the search: the scale with the lowest FD, for each method that was searched at all scales."""
    lines = read_lines(path)
    for condition in ("unconditional", "conditional"):
        best = {}
        for method in METHODS:
            searched = [line for line in lines if (line["condition"], line["method"]) == (condition, method)]
            if searched:
                best[method] = min(searched, key=lambda line: line["metrics"]["fd"]["value"])["settings"]["scale"]
        if best:
            scales.put(model, condition, "best", best)
