"""The small MMDiT as a stock SD3 pipeline; captions, noise, sampling and pictures are those of `embedded`."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

MODEL = Path(__file__).parent / "model_mmdit"
SOLVER_STEPS = 10  # of `solver_of`: FD 411 ± 47 of 250 pictures late in training; Euler with 25: 420 ± 48


def solver_of(scheduler: FlowMatchEulerDiscreteScheduler) -> DPMSolverMultistepScheduler:
    """DPM-Solver++ (2M), which WebUIs call DPM++ 2M, on the same straight paths."""
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": scheduler.config.shift}
    return DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, **flow)


def load_pipeline(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    folder: Path = MODEL,
    kind: type[DiffusionPipeline] = StableDiffusion3Pipeline,
) -> DiffusionPipeline:
    """A Stable Diffusion 3 pipeline of class `kind`; weights are widened to `dtype`."""
    transformer = SD3Transformer2DModel.from_pretrained(folder / "transformer", torch_dtype=dtype)
    encoders = [f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")]
    pipeline = kind(
        transformer=transformer.to(device).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        **dict.fromkeys(["vae", *encoders]),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
