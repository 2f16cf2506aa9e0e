"""`python -m research choose`: the settings with which the demo shows each method.

The rule, written down before anything was sampled: a method's setting is the one with which the judge gives the asked
names the highest mean log-probability, among those with which at most half as many values again as with CFG alone lie
at the ends of the scale (burnt colours). All are sampled with the same captions and noise; the demo has other noise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from asag.lab.renderings import shipped
from asag.lab.renderings.judge import Judge, load_judge
from asag.lab.renderings.quality import asked_names
from research import arguments
from research.lines import Line, markdown, read_lines, replace_text, write_lines

METHODS = ("pag", "seg", "asag")
BLOCKS = ("in.3", "mid", "out.0-1", "all")
SCALES = (0.5, 1.0)
SEED = 500
_BURNT = 0.98  # values of a picture lie between -1 and 1
_MOST_BURNT = 1.5  # times as many as with CFG alone


def candidates() -> Iterator[dict[str, Any]]:
    """CFG alone first, as no settings."""
    yield {}
    for method in METHODS:
        for blocks in BLOCKS:
            for scale in SCALES:
                yield {"method": method, "blocks": blocks, "scale": scale, "unit": "cfg"}


@torch.no_grad()
def measured(judge: Judge, images: torch.Tensor, names: Sequence[str]) -> Line:
    """The mean log-probability of the names, the share of them that is right, and of burnt values."""
    logits = judge(images)[0].double().log_softmax(1)
    rows = torch.tensor([judge.names.index(name) for name in names])
    return {
        "log_probability": float(logits.gather(1, rows[:, None]).mean()),
        "right": float((logits.argmax(1) == rows).double().mean()),
        "burnt": float((images.abs() > _BURNT).double().mean()),
    }


def chosen(lines: Sequence[Line], method: str) -> Line:
    """The line of `method` that the rule names. Raises ValueError where none fits it."""
    limit = _MOST_BURNT * next(each["burnt"] for each in lines if not each["settings"])
    fitting = [each for each in lines if each["settings"].get("method") == method and each["burnt"] <= limit]
    if not fitting:
        raise ValueError(f"method: {method}; allowed: one with a setting that burns no more than {limit:.4f}")
    return max(fitting, key=lambda each: float(each["log_probability"]))


def page(lines: Sequence[Line]) -> str:
    head = ["method", "blocks", "scale", "log-probability", "right", "burnt", "chosen"]
    best = [
        chosen(lines, method) for method in METHODS if any(each["settings"].get("method") == method for each in lines)
    ]
    rows = []
    for each in lines:
        settings = each["settings"]
        first = [str(settings.get(name, "")) for name in ("method", "blocks", "scale")]
        figures = [f"{each[name]:.3f}" for name in ("log_probability", "right")]
        rows.append([*(first if settings else ["CFG alone", "", ""]), *figures, f"{each['burnt']:.4f}"])
        rows[-1].append("yes" if each in best else "")
    return markdown(head, rows)


def main(argv: list[str] | None = None) -> int:
    args = arguments.choose(argv)
    torch.set_num_threads(args.threads)
    judge, path = load_judge(args.judge or args.model), args.out / "choose.jsonl"
    pipeline, captions = shipped.fast_pipeline(args.model), shipped.Captions(args.model)
    names, _ = asked_names(judge, args.samples, SEED, left_out=False)
    lines = read_lines(path)
    for settings in candidates():
        if any(each["settings"] == settings for each in lines):
            continue
        options = {"guidance_scale": shipped.CFG, "num_inference_steps": shipped.SOLVER_STEPS, "seed": SEED}
        images = shipped.guided_sample(pipeline, captions, names, settings, half_size=args.half_size, **options)
        lines.append({"settings": settings, "samples": args.samples, **measured(judge, images, names)})
        print(json.dumps(lines[-1]), flush=True)
        write_lines(path, lines)
    replace_text(args.out / "choose.md", page(lines) + "\n")
    print(page(lines))
    return 0
