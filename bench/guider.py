"""What the guider of modular pipelines costs in a step with CFG, on a CPU: `python bench/guider.py`.

Small UNets in the layouts of SD1.5 and SDXL are called as the modular loops call them, batch after batch. Each round
has CFG alone, CFG and a whole extra pass, and CFG with shared work. Printed are paired ratios to CFG alone: the median
and the interquartile range, by processor time.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from asag.hosts.diffusers_guider import AdversarialSinkhornAttentionGuidance
from asag.lab.bench.measure import Meter, Variant, ratio
from asag.lab.bench.models import Denoiser, Size, build, take_rows

# Half the width of SD1.5 and a fifth of SDXL's, so that heads have 64 channels there.
SIZES = {"sd15": Size(160, 32), "sdxl": Size(64, 64, depth=4)}
ROUNDS = 9


def step(denoiser: Denoiser, guider: Any) -> None:
    guider.set_state(step=0, num_inference_steps=20, timestep=torch.tensor(500.0))
    unconditional, conditional = (take_rows(denoiser.conditions, rows) for rows in (slice(0, 1), slice(1, 2)))
    batches = guider.prepare_inputs({})
    for batch in batches:
        guider.prepare_models(denoiser.model)
        given = unconditional if batch.__guidance_identifier__ == "pred_uncond" else conditional
        batch.noise_pred = denoiser.model(denoiser.latents, **given, return_dict=False)[0]
        guider.cleanup_models(denoiser.model)
    guider(batches)


def main() -> None:
    torch.set_num_threads(1)
    settings: dict[str, dict[str, Any]] = {
        "cfg": {"adversarial_guidance_scale": 0.0},
        "whole pass": {"reuse": False},
        "shared": {},
    }
    for family, size in SIZES.items():
        denoiser = build(family, size, torch.device("cpu"))
        guiders = {name: AdversarialSinkhornAttentionGuidance(7.0, **given) for name, given in settings.items()}
        variants = {name: Variant(partial(step, denoiser, guider)) for name, guider in guiders.items()}
        times = Meter(torch.device("cpu"), ROUNDS, clock="cpu").rounds(variants)
        for name in ("whole pass", "shared"):
            middle, spread = ratio(times[name], times["cfg"])
            print(f"{family}, mid, {name}: {middle:.3f} ± {spread:.3f} ({ROUNDS} pairs)")


if __name__ == "__main__":
    main()
