"""The part "branch": the same guided step with shared work and by a whole extra pass, on models of full width.

Both are the same sum in another order, so they differ by rounding alone. In float32 that is compared with what the
guidance changes; in half precision, where rounding is as large, with the prediction.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from asag.hosts.diffusers_pipeline import asag_guidance
from asag.lab.bench.device.lines import Line
from asag.lab.bench.device.watch import exact_float32, told, waits_of
from asag.lab.bench.shapes import QUICK_STEPS, StepCase
from asag.lab.bench.step_model import StepModel, step_model
from asag.rounding import LOST

CASES = (
    StepCase("sd15", 64, 64),
    StepCase("sd15", 64, 64, blocks="all"),
    StepCase("sdxl", 128, 128),
    StepCase("sdxl", 128, 128, blocks="late"),
    StepCase("sd3", 128, 128, blocks="joint.12"),
)
# Of queries and keys: with the weights that a new model has, attention is all but uniform.
GAIN = 8.0
OF_GUIDANCE = 2e-2
OF_PREDICTION = {torch.float32: 1e-4, torch.float16: 1e-2}


def sharpen(model: Any) -> None:
    """Make attention differ from token to token."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("to_q.weight", "to_k.weight")):
                parameter.mul_(GAIN**0.5)


def guided(denoiser: StepModel, case: StepCase, device: torch.device, reuse: bool) -> tuple[int, Tensor, list[str]]:
    """The waits, the prediction and the warnings of the second step of a picture; the first looks the rows over."""
    opened = asag_guidance(denoiser.pipeline(), scale=1.5, blocks=case.blocks, reuse=reuse)
    with told("asag") as log, torch.no_grad(), opened:
        denoiser.step()
        waits, found = waits_of(device, denoiser.step)
    # A push that is lost in rounding is no fault of shared work; `push` says how large it is.
    return waits, found, [line for line in log if not line.startswith(LOST.partition("%")[0])]


def compared(case: StepCase, dtype: torch.dtype, device: torch.device, quick: bool) -> Line:
    denoiser = step_model(case, device, dtype, quick)
    sharpen(denoiser.model)
    with torch.no_grad():
        plain = denoiser.step().double()
    waits, shared, log = guided(denoiser, case, device, reuse=True)
    _, whole, _ = guided(denoiser, case, device, reuse=False)
    off = float((shared.double() - whole.double()).norm())
    push, size = float((whole.double() - plain).norm()), float(plain.norm())
    of_guidance, of_prediction = off / max(push, 1e-30), off / size
    ok = push > 0 and of_prediction < OF_PREDICTION[dtype] and not waits and not log
    if dtype == torch.float32:
        ok = ok and of_guidance < OF_GUIDANCE
    line: Line = {"ok": ok, "of guidance": of_guidance, "of prediction": of_prediction, "push": push / size}
    return line | {"waits": waits} | ({"problem": log[0]} if log else {})


def lines(device: torch.device, quick: bool) -> Iterator[Line]:
    for case in QUICK_STEPS[:1] if quick else CASES:
        for dtype in OF_PREDICTION if device.type == "cuda" else (torch.float32,):
            facts = {"case": case.name, "dtype": str(dtype).removeprefix("torch.")}
            try:
                with exact_float32():
                    yield facts | compared(case, dtype, device, quick)
            except torch.cuda.OutOfMemoryError:
                yield facts | {"skipped": "not enough memory"}
            except Exception as error:  # the other cases go on
                yield facts | {"ok": False, "problem": f"{type(error).__name__}: {error}"}
