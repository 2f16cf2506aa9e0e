"""A guided sampling step against one with classifier-free guidance (CFG) alone; and the paper's Table 4."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

from asag.hosts.diffusers_pipeline import asag_guidance
from asag.lab.bench.measure import Meter, Variant, ratio, record, share
from asag.lab.bench.models import SIZES, Denoiser, build, pipeline_double
from asag.presets import PRESETS


@dataclass(frozen=True)
class Case:
    """What is guided and how. `steps`: how many sampling steps the window of the settings is spread over. `whole`:
    settings to compare with in the same rounds, such as the whole layers of which some heads are weakened."""

    family: str
    name: str
    settings: dict[str, Any]
    controlled: bool = False
    methods: tuple[str, ...] = ("asag",)
    steps: int = 1
    whole: dict[str, Any] | None = None

    @property
    def title(self) -> str:
        return f"{self.family}-{self.name}"


ALL_METHODS = ("asag", "pag", "seg")
FAST = PRESETS["Fast"]
MID = {"blocks": "mid"}

CASES = (
    Case("sd15", "mid", MID, methods=ALL_METHODS),
    Case("sd15", "out.3", {"blocks": "out.3"}),
    Case("sd15", "out.6", {"blocks": "out.6"}),
    Case("sd15", "mid-controlnet", MID, controlled=True),
    Case("sd15", "mid-heads", {"blocks": "mid:h0-1"}, whole=MID),
    Case("sd15", "mid-aligned", {"blocks": "mid:aligned"}, whole=MID),
    Case("sd15", "mid-amount", {"blocks": "mid", "amount": 0.5}, whole=MID),
    Case("sd15", "out.9-heads", {"blocks": "out.9:h0-1"}, whole={"blocks": "out.9"}),
    Case("sd15", "fast", FAST, steps=5),
    Case("sdxl", "mid", MID, methods=ALL_METHODS),
    Case("sdxl", "out.0", {"blocks": "out.0"}),
    Case("sdxl", "out.3", {"blocks": "out.3"}),
    Case("sdxl", "mid-controlnet", MID, controlled=True),
    Case("sdxl", "fast", FAST, steps=5),
    Case("sd3", "joint.12", {"blocks": "joint.12"}),
    Case("sd3", "joint.16", {"blocks": "joint.16"}),
    Case("sd3", "joint.20", {"blocks": "joint.20"}),
)

# "Inference Time (sec)" and "Memory (G)" of the paper's Table 4.
PAPER = {"cfg": (1.198, 16.41), "pag": (1.280, 16.46), "seg": (1.513, 16.61), "asag": (1.551, 16.61)}


def measure(meter: Meter, quick: bool = False, only: str = "") -> Iterator[dict[str, Any]]:
    """A record per case and variant, and those of Table 4. Each model is built once, and dropped before the next."""
    sizes = SIZES["quick" if quick else "cpu" if meter.device.type == "cpu" else "accelerator"]
    chosen = [case for case in CASES if only in case.title]
    for family, cases in groupby(chosen, key=lambda case: case.family):
        size = sizes[family]
        denoiser = build(family, size, meter.device)
        for case in cases:
            for found in measure_case(meter, denoiser, case):
                yield found | {"width": size.width, "latent": size.latent}
    yield from table_4()


def measure_case(meter: Meter, denoiser: Denoiser, case: Case) -> Iterator[dict[str, Any]]:
    variants = variants_of(denoiser, case)
    times = meter.rounds(variants)
    held = {name: denoiser.weight_bytes + meter.peak_bytes(variant) for name, variant in variants.items()}
    for name in variants:
        found = record("step", case.title, name, times, base="cfg")
        found["memory_to_cfg"] = round(held[name] / held["cfg"], 4)
        if name not in ("cfg", "full-pass"):
            found["share_of_full_pass"] = share(times[name], times["full-pass"], times["cfg"])
        if name == "asag" and "whole" in times:
            middle, spread = ratio(times["asag"], times["whole"])
            found |= {"ratio_to_whole": round(middle, 4), "spread_to_whole": round(spread, 4)}
        yield found


def variants_of(denoiser: Denoiser, case: Case) -> dict[str, Variant]:
    """CFG alone; with a whole extra pass of the conditional row, as peers do it, in every step; with prefix reuse."""
    step = partial(denoiser.step, case.controlled)
    everywhere = {"blocks": case.settings["blocks"]}
    variants = {
        "cfg": Variant(step),
        "full-pass": Variant(
            partial(controlled_again, denoiser) if case.controlled else step,
            partial(guidance, denoiser, reuse=False, **everywhere),
        ),
    }
    for method in case.methods:
        opened = partial(guidance, denoiser, case.steps, reuse=True, method=method, **case.settings)
        variants[method] = Variant(partial(repeated, step, case.steps), opened, case.steps)
    if case.whole:
        variants["whole"] = Variant(step, partial(guidance, denoiser, reuse=True, **case.whole))
    return variants


def guidance(denoiser: Denoiser, steps: int = 0, **settings: Any) -> AbstractContextManager[object]:
    """`steps` (0: many): how many the pipeline seems to do, of which a window takes its part."""
    pipe = pipeline_double(denoiser.model, steps) if steps > 1 else pipeline_double(denoiser.model)
    return asag_guidance(pipe, scale=1.5, **settings)


def repeated(step: Any, times: int) -> None:
    for _ in range(times):
        step()


def controlled_again(denoiser: Denoiser) -> None:
    """A step whose extra pass runs the ControlNet on the conditional row too: peers call the host's whole sampling."""
    denoiser.step(controlled=True)
    denoiser.residuals(slice(1, 2))


def table_4() -> Iterator[dict[str, Any]]:
    """The paper's figures, as ratios to its CFG."""
    for name, (seconds, memory) in PAPER.items():
        yield {
            "bench": "table-4",
            "case": "paper",
            "variant": name,
            "ratio_to_cfg": round(seconds / PAPER["cfg"][0], 4),
            "memory_to_cfg": round(memory / PAPER["cfg"][1], 4),
        }
