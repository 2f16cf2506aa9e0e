"""Which pipeline calls a denoiser: several may share it (from_pipe), and a guidance has to go by the steps, the CFG
scale and the scheduler of the one that runs."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from torch import nn

from asag.models.base import UnsupportedModel, has_class

# Code of these packages may stand between a pipeline and its denoiser.
BETWEEN = frozenset(
    {"torch", "accelerate", "diffusers", "diffusers_modules", "k_diffusion", "functools", "contextlib", "asag"}
)


def calling_pipeline(pipe: Any, denoiser: nn.Module) -> Any:
    """The pipeline in whose loop the running call of `denoiser` is; `pipe`, the one that was opened, if it's none of
    diffusers' own kind.

    Raises:
        UnsupportedModel: when the call comes from elsewhere, a callback or a loop of the user's own: such a call is no
            step of the pipeline's, and which rows of it are conditional isn't known.
    """
    if not has_class(pipe, "DiffusionPipeline"):
        return pipe
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if "self" in code.co_varnames or "self" in code.co_freevars:
            owner = frame.f_locals.get("self")
            if has_class(owner, "DiffusionPipeline") and _owns(owner, denoiser):
                return owner
        if frame.f_globals.get("__name__", "").split(".")[0] not in BETWEEN:
            break
        frame = frame.f_back
    called_by = "another program" if frame is None else f"{frame.f_code.co_name} in {frame.f_code.co_filename}"
    raise UnsupportedModel(
        f"pipe: {type(pipe).__name__}'s denoiser was called by {called_by}, not by a pipeline's own loop; allowed: "
        "calls of the pipeline; inside `with asag_guidance(pipe, enabled=False)` any call, which isn't guided"
    )


def _owns(pipe: Any, denoiser: nn.Module) -> bool:
    return any(getattr(pipe, part, None) is denoiser for part in ("unet", "transformer"))
