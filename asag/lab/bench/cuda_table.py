"""The tables of docs/cost.md, of the lines that `python -m asag bench cuda` writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asag.lab.bench.roofline import GPUS

Line = dict[str, Any]
# How much longer than a step with CFG alone a guided one may take, by blocks; for a UNet's image in half precision.
AIMS = {"mid": 1.36, "late": 1.30, "all": 1.65}
FAMILIES = {"sd15": "SD1.5", "sdxl": "SDXL", "sd3": "SD3", "flux": "Flux"}
OPERATORS = {
    "sd15-mid-512": "SD1.5 at 512, `mid`, 64 tokens",
    "sd15-out.9-512": "SD1.5 at 512, `out.9`, 4096 tokens",
    "sdxl-mid-1024": "SDXL at 1024, `mid`, 1024 tokens",
    "sdxl-mid-832x1216": "SDXL at 832 × 1216, `mid`, 988 tokens",
    "sdxl-out.3-1024": "SDXL at 1024, `out.3`, 4096 tokens",
    "sd3-joint-1024": "SD3 at 1024, 4096 tokens and 154 of text",
    "flux-double-1024": "Flux at 1024, 4096 tokens and 512 of text",
}


def read(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def title_of(case: str) -> str:
    """ "sdxl-152x104-mid" as "SDXL, 832 × 1216, `mid`"; sizes in pixels, width first."""
    family, size, blocks, *several = case.split("-")
    height, width = (8 * int(side) for side in size.split("x"))
    images = f", {several[0].removeprefix('batch')} images" if several else ""
    return f"{FAMILIES[family]}, {width} × {height}, `{blocks}`{images}"


def found_in(lines: Sequence[Line], bench: str, case: str, method: str, triton: str) -> Line | None:
    """The line in half precision, for the smaller logits where it matters; a step's batch is in its case's name."""
    return next(
        (
            line
            for line in lines
            if (line["bench"], line["case"], line["method"], line["triton"]) == (bench, case, method, triton)
            and line["dtype"] == "float16"
            and (bench == "step" or line["batch"] == 1)
        ),
        None,
    )


def pair_of(lines: Sequence[Line], bench: str, case: str) -> list[Line | None]:
    return [found_in(lines, bench, case, "asag", triton) for triton in ("without", "with")]


def cells_of(found: Sequence[Line | None], names: Sequence[str], digits: int) -> list[str]:
    """A cell for each name, what was found without Triton before what was found with it."""
    return [" / ".join("–" if line is None else format_of(line[name], digits) for line in found) for name in names]


def format_of(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def cost_table(lines: Sequence[Line]) -> str:
    """A row for each guided step in half precision; in a cell, the figure without Triton stands before that with it."""
    ratios = [f"modelled ratio, {gpu.name}" for gpu in GPUS.values()][::-1]
    heads = ["One guided step, compared with CFG", "kernels of CFG", "kernels", "waits", "RTX 4090", "H100", "aim"]
    rows = [heads, ["---"] * len(heads)]
    for case in dict.fromkeys(line["case"] for line in lines if line["bench"] == "step"):
        cfg = found_in(lines, "step", case, "cfg", "")
        aim = AIMS.get(case.split("-")[2]) if case.startswith(("sd15", "sdxl")) else None
        cells = cells_of(pair_of(lines, "step", case), ["kernels", "waits", *ratios], digits=3)
        rows.append([title_of(case), str(cfg["kernels"] if cfg else "–"), *cells, f"{aim:.2f}" if aim else ""])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def operator_table(lines: Sequence[Line]) -> str:
    """A row for some layers: the operator beside ordinary attention."""
    ratios = [f"modelled ratio, {gpu.name}" for gpu in GPUS.values()][::-1]
    heads = ["One layer, compared with its attention", "kernels", "waits", "peak MiB", "RTX 4090", "H100"]
    rows = [heads, ["---"] * len(heads)]
    for case in dict.fromkeys(line["case"] for line in lines if line["bench"] == "operator"):
        cells = cells_of(pair_of(lines, "operator", case), ["kernels", "waits", "peak_mib", *ratios], digits=1)
        rows.append([OPERATORS.get(case, case), *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
