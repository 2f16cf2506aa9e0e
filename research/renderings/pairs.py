"""`python -m research pairs`: pairs of pictures for a blind judgement, and what it said.

Each pair has one caption and one noise, once with CFG alone and once with CFG and ASAG as the demo has it. A lot says
which of them is A; only the key tells it, and it lies in a file of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from asag.lab.embedded.shipped import to_pil
from asag.lab.renderings import shipped
from asag.lab.renderings.grid import METHODS
from asag.lab.renderings.judge import load_judge
from asag.lab.renderings.quality import asked_names
from research import arguments

SEED = 900  # neither the search's nor the demo's
_ON_A_SHEET = 10
_SCALE = 3  # of the pictures on a sheet
_TEXT = 16  # pixels above a pair
BASE, GUIDED = "CFG", "CFG + ASAG"


def draw(first: torch.Tensor, second: torch.Tensor, names: Sequence[str], path: Path, number: int) -> None:
    """A sheet of pairs, A on the left and B on the right, each under its number and caption."""
    side = _SCALE * first.shape[-1]
    sheet = Image.new("RGB", (2 * (2 * side + 24), (len(names) + 1) // 2 * (side + _TEXT + 8)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (a, b) in enumerate(zip(to_pil(first, _SCALE), to_pil(second, _SCALE), strict=True)):
        x, y = i % 2 * (2 * side + 24), i // 2 * (side + _TEXT + 8)
        pen.text((x + 2, y + 2), f"{number + i}: {names[i]} (A left, B right)", fill="black")
        sheet.paste(a, (x, y + _TEXT))
        sheet.paste(b, (x + side + 8, y + _TEXT))
    sheet.save(path)


def lots(count: int) -> list[bool]:
    """For each pair whether A is the one with ASAG."""
    return (torch.rand(count, generator=torch.Generator().manual_seed(SEED)) < 0.5).tolist()


def make(model: Path, judge_folder: Path, count: int, out: Path) -> None:
    """Write the sheets and the key into `out`."""
    pipeline, captions = shipped.fast_pipeline(model), shipped.Captions(model)
    names, _ = asked_names(load_judge(judge_folder), count, SEED, left_out=False)
    ways = [METHODS[name] for name in (BASE, GUIDED)]
    base, guided = (
        shipped.guided_sample(
            pipeline,
            captions,
            names,
            way.settings,
            seed=SEED,
            guidance_scale=way.cfg,
            num_inference_steps=shipped.SOLVER_STEPS,
        )
        for way in ways
    )
    guided_first = torch.tensor(lots(count))[:, None, None, None]
    a, b = torch.where(guided_first, guided, base), torch.where(guided_first, base, guided)
    out.mkdir(parents=True, exist_ok=True)
    for start in range(0, count, _ON_A_SHEET):
        part = slice(start, start + _ON_A_SHEET)
        draw(a[part], b[part], names[part], out / f"pairs-{start // _ON_A_SHEET + 1}.png", start + 1)
    key = {str(i + 1): "A" if first else "B" for i, first in enumerate(lots(count))}
    (out / "key.json").write_text(json.dumps(key, indent=0) + "\n")


def share(key: dict[str, str], answers: Sequence[dict[str, str]]) -> dict[str, float]:
    """In how many pairs most of the judges (each: a pair's number to A, B or =) preferred ASAG, and its share of those
    that weren't even."""
    won = lost = 0
    for number, side in key.items():
        votes = sum({side: 1, "=": 0}.get(each[number], -1) for each in answers)
        won, lost = won + (votes > 0), lost + (votes < 0)
    return {"pairs": len(key), "won": won, "lost": lost, "share": won / max(won + lost, 1)}


def main(argv: list[str] | None = None) -> int:
    args = arguments.pairs(argv)
    torch.set_num_threads(args.threads)
    if args.answers:
        answers = [json.loads(path.read_text()) for path in args.answers]
        print(json.dumps(share(json.loads((args.out / "key.json").read_text()), answers)))
        return 0
    make(args.model, args.judge or args.model, args.count, args.out)
    return 0
