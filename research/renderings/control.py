"""`python -m research control`: what guidance does beside a ControlNet or an IP-Adapter; see protocol-control.md."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from torch import Tensor

from asag.hosts.diffusers_pipeline import asag_guidance
from asag.lab.embedded.shipped import sample_from
from asag.lab.renderings import ip_adapter, names, shipped
from asag.lab.renderings.adapters import BaseError, check_base
from asag.lab.renderings.edges import agreement, control_picture, edges
from asag.lab.renderings.judge import Judge, load_judge
from asag.lab.renderings.pictures import Pictures
from asag.lab.renderings.quality import asked_names
from asag.lab.renderings.sheet import CAPTIONS
from research import arguments
from research.device import device_of
from research.lines import Line, markdown, replace_text, write_lines
from research.renderings.choose import BURNT, METHODS
from research.renderings.control_figure import SHOWN, draw

BLOCKS = ("all", "out.0-1")
PUSH = 0.5  # of each method, beside CFG's own
SEED = 1700  # neither the search's nor the demo's nor the pairs'
WITHOUT, CFG = "without", "CFG"
METRICS = {
    "lines": "lines ↑",
    "likeness": "likeness ↑",
    "name_right": "named right ↑",
    "log_probability": "log-probability ↑",
    "burnt": "burnt",
}
_HELD_OUT = 0.25  # of the names
_SURE = 3  # paired standard errors


class Way(NamedTuple):
    """A row: its name, whether the adapter acts, and the extension's settings; none: without it."""

    name: str
    adapted: bool
    settings: dict[str, Any]


def ways() -> Iterator[Way]:
    yield Way(WITHOUT, False, {})
    yield Way(CFG, True, {})
    for blocks in BLOCKS:
        for method in METHODS:
            settings = {"method": method, "blocks": blocks, "scale": PUSH, "unit": "cfg"}
            yield Way(f"{CFG} + {method.upper()}, {blocks}", True, settings)


def asked(judge: Judge, count: int) -> list[str]:
    """The first fixed captions, then names of the seed, a quarter of them held out of training."""
    first = [name for name in CAPTIONS[:SHOWN] if name in judge.names][:count]
    held = round(_HELD_OUT * (count - len(first)))
    learnt, _ = asked_names(judge, count - len(first) - held, SEED, left_out=False)
    left_out, _ = asked_names(judge, held, SEED, left_out=True)
    return [*first, *learnt, *left_out]


class Adapted:
    """A UNet with a ControlNet or an IP-Adapter, and what is asked of it.

    `wanted`: pictures (N,3,64,64) in [-1,1] whose lines are drawn along, or which are drawn anew.
    """

    def __init__(self, args: Namespace) -> None:
        """Raises BaseError, and FileNotFoundError where a folder holds no renderings."""
        self.args, self.device = args, device_of(args)
        renderings = names.read(args.data)
        check_base(args.model, renderings)
        self.judge, self.captions = load_judge(args.model).to(self.device), shipped.Captions(args.model)
        self.names = asked(self.judge, args.samples)
        found = {each.name: each for each in renderings}
        pictures = Pictures([found[name] for name in self.names], torch.device("cpu"))
        self.wanted = pictures.draw(torch.arange(args.samples), torch.Generator().manual_seed(SEED))
        self.features = self._judged(self.wanted)[0]
        self.kind = "ip-adapter" if args.controlnet is None else "controlnet"
        self.pipeline = self._pipeline()

    def _pipeline(self) -> Any:
        if self.args.controlnet is None:
            pipeline = shipped.fast_pipeline(self.args.model, device=self.device)
            ip_adapter.attach(pipeline, self.args.ip_adapter)
            return pipeline
        controlnet = ControlNetModel.from_pretrained(self.args.controlnet, torch_dtype=torch.float32)
        parts = {"kind": StableDiffusionControlNetPipeline, "controlnet": controlnet.to(self.device).eval()}
        return shipped.fast_pipeline(self.args.model, device=self.device, **parts)

    def images(self, way: Way) -> Tensor:
        """(N,3,64,64) in [-1,1] on the CPU. All ways have the same noise."""
        noise = shipped.start_noise(len(self.names), SEED)
        # diffusers gives all pictures of a call the same references.
        batch = 1 if self.kind == "ip-adapter" else shipped.batch_on(self.device)
        found = []
        for start in range(0, len(self.names), batch):
            part = slice(start, start + batch)
            null = self.captions.null(len(self.names[part]))
            # The reference alone says what the IP-Adapter should draw.
            tokens = null if self.kind == "ip-adapter" else self.captions.embed(self.names[part])
            options = {"guidance_scale": shipped.CFG, "num_inference_steps": self.args.steps}
            with asag_guidance(self.pipeline, **way.settings) if way.settings else nullcontext():
                more = self._added(part, way.adapted)
                found.append(sample_from(self.pipeline, tokens, null, noise[part], **options, **more))
        return torch.cat(found)

    def _added(self, part: slice, adapted: bool) -> dict[str, Any]:
        """What the pipeline's call is given for the adapter."""
        if self.kind == "controlnet":
            return {"image": control_picture(self.wanted[part]), "controlnet_conditioning_scale": float(adapted)}
        self.pipeline.set_ip_adapter_scale(float(adapted))
        features = self.features[part, None]
        return {"ip_adapter_image_embeds": [torch.cat([torch.zeros_like(features), features])]}

    def measured(self, images: Tensor) -> dict[str, Tensor]:
        """Each of METRICS (N,), float64."""
        features, logits = self._judged(images)
        rows = torch.tensor([self.judge.names.index(name) for name in self.names], device=self.device)
        found = {
            "lines": agreement(edges(images), edges(self.wanted)),
            "likeness": torch.cosine_similarity(features, self.features),
            "name_right": logits.argmax(1) == rows,
            "log_probability": logits.double().log_softmax(1).gather(1, rows[:, None])[:, 0],
            "burnt": (images.abs() > BURNT).flatten(1).double().mean(1),
        }
        return {name: value.double().cpu() for name, value in found.items()}

    @torch.no_grad()
    def _judged(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The judge's features (N,256) and its names' logits."""
        parts = [part.to(self.device) for part in images.split(128)]
        return (
            torch.cat([self.judge.features(part) for part in parts]),
            torch.cat([self.judge(part)[0] for part in parts]),
        )


def estimated(values: dict[str, Tensor], cfg: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Means with their standard errors, and the differences to CFG's with paired ones."""
    found = {}
    for name, each in values.items():
        difference = each - cfg[name]
        found[name] = {
            **{"value": float(each.mean()), "error": _error(each)},
            **{"to_cfg": float(difference.mean()), "to_cfg_error": _error(difference)},
        }
    return found


def _error(values: Tensor) -> float:
    return float(values.std() / len(values) ** 0.5)


def page(lines: list[Line]) -> str:
    rows = [[line["way"], *(_shown(line["metrics"][name]) for name in METRICS)] for line in lines]
    about = (
        f"{lines[0]['kind']}, {lines[0]['samples']} pictures, {lines[0]['steps']} steps. (+5σ) is the difference to "
    )
    about += f"CFG in paired standard errors, from {_SURE} on. What is measured: protocol-control.md."
    return f"{about}\n\n{markdown(['', *METRICS.values()], rows)}\n"


def _shown(metric: dict[str, float]) -> str:
    sigmas = metric["to_cfg"] / metric["to_cfg_error"] if metric["to_cfg_error"] else 0.0
    return f"{metric['value']:.3f}" + (f" ({sigmas:+.0f}σ)" if abs(sigmas) >= _SURE else "")


def main(argv: list[str] | None = None) -> int:
    args = arguments.control(argv)
    try:
        adapted = Adapted(args)
    except BaseError as error:
        args.error(f"--model: {error}")
    except FileNotFoundError as error:
        args.error(f"--data: {error}")
    run(adapted, args.out)
    return 0


def run(adapted: Adapted, out: Path) -> None:
    """Sample and measure each way; write lines, table and figures."""
    made = {way.name: adapted.images(way) for way in ways()}
    values = {name: adapted.measured(images) for name, images in made.items()}
    lines = [
        {
            **{"kind": adapted.kind, "way": way.name, "settings": way.settings, "samples": len(adapted.names)},
            **{"guidance_scale": shipped.CFG, "steps": adapted.args.steps},
            "metrics": estimated(values[way.name], values[CFG]),
        }
        for way in ways()
    ]
    path = out / f"{adapted.kind}.jsonl"
    write_lines(path, lines)
    replace_text(path.with_suffix(".md"), page(lines))
    print(page(lines))
    first = {"reference": adapted.wanted}
    if adapted.kind == "controlnet":
        first = {"lines": control_picture(adapted.wanted) * 2 - 1}
    for blocks in BLOCKS:
        shown = [way for way in ways() if way.adapted and way.settings.get("blocks", blocks) == blocks]
        rows = first | {way.name.split(",")[0]: made[way.name] for way in shown}
        draw(rows, adapted.names, out / f"{adapted.kind}-{blocks}.png")
