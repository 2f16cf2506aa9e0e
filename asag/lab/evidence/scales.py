"""The scales of two protocols: those that push equally far, and each method's best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from asag.hosts.diffusers import asag_guidance
from asag.lab import embedded
from asag.lab.evidence.plans import METHODS, PAPER_SCALES, Scales, baseline, guided
from asag.lab.evidence.runs import MODELS, Run, Sampler, captions

_PICTURES = 48
_SEED = 102
_ROUNDS = 4  # of the fixed point, which converges since the size of δ changes slowly with the scale


def sample_pictures(sampler: Sampler, run: Run, count: int, **settings: Any) -> Any:
    """Sample `count` pictures as one batch; returns the trace of the guidance, if `settings` or the run's guide."""
    pipeline, module = sampler.pipeline(run.model), MODELS[run.model]
    null = embedded.null_embeds(count, module.MODEL)
    tokens = embedded.embed_labels(captions(count), module.MODEL) if run.conditional else null
    noise = embedded.start_noise(count, _SEED)
    given = {"scale": 0.0, **dict(run.settings), **settings}
    with asag_guidance(pipeline, **given) as trace:
        options = {"guidance_scale": run.guidance_scale, "num_inference_steps": run.steps}
        module.sample_from(pipeline, tokens, null, noise, **options)
    return trace


def push(sampler: Sampler, run: Run) -> float:
    """Mean over guided steps and 48 pictures of the RMS of s δ, along the run's own trajectory."""
    trace = sample_pictures(sampler, run, _PICTURES, figures=True)
    pushes = [torch.tensor(step.scales) * torch.tensor(step.sizes) for step in trace.passes[0].steps]
    return float(torch.stack(pushes).mean())


def calibrate(sampler: Sampler, model: str, scales: Scales, steps: int = 25) -> None:
    """Find for each method the scale whose push is that of ASAG at the paper's scale, within 1 %."""
    for conditional in (False, True):
        base = baseline(model, conditional, steps=steps)
        aim = push(sampler, guided(base, {"method": "asag", "scale": PAPER_SCALES["asag"]}))
        found = {"asag": PAPER_SCALES["asag"]}
        for method in METHODS[:-1]:
            scale = PAPER_SCALES["asag"]
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
    if not path.exists():
        return
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    for condition in ("unconditional", "conditional"):
        best = {}
        for method in METHODS:
            searched = [line for line in lines if (line["condition"], line["method"]) == (condition, method)]
            if searched:
                best[method] = min(searched, key=lambda line: line["metrics"]["fd"]["value"])["settings"]["scale"]
        if best:
            scales.put(model, condition, "best", best)
