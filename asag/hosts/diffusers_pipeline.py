"""ASAG in diffusers' classic pipelines: SD1.x, SD2, SDXL, SD3 and Flux, with ControlNet, img2img, inpaint, IP-Adapter.

with asag_guidance(pipe, scale=1.5, blocks="mid"):
    image = pipe("a photo of a cat").images[0]
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any, Literal
from weakref import WeakKeyDictionary

from torch import nn

from asag.echo import shown
from asag.hosts.diffusers_guidance import Guidance
from asag.hosts.diffusers_models import denoiser_of
from asag.kernel_choice import KERNELS
from asag.models.base import UnsupportedModel
from asag.settings import AsagSettings, SettingsError, current_names
from asag.trace import Trace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenGuidance:
    """A guidance (None: one that changes nothing) and the thread that opened it."""

    guidance: Guidance | None
    thread: int


# The guidances open on a denoiser; of nested ones the innermost holds.
_open: WeakKeyDictionary[nn.Module, list[OpenGuidance]] = WeakKeyDictionary()


@contextmanager
def asag_guidance(
    pipe: Any,
    *,
    scale: float = 1.5,
    blocks: str = "auto",
    iterations: int = 2,
    strength: float = 1.0,
    method: Literal["asag", "pag", "seg", "uniform", "similarity"] = "asag",
    start: float | str = 0.0,
    end: float | str = 1.0,
    schedule: Literal["constant", "linear", "cosine", "bell"] = "constant",
    rescale: float = 0.0,
    contrast: float = 1.0,
    unit: Literal["paper", "push", "cfg"] = "paper",
    blur: float = 10000.0,
    reuse: bool = True,
    figures: bool = False,
    tolerance: float = 0.0,
    amount: float = 1.0,
    every: int = 1,
    enabled: bool = True,
    **unknown: Any,
) -> Iterator[Trace | None]:
    """While open, every call of a classic diffusers pipeline is guided; afterwards the denoiser is as before.

    Args:
        pipe: a pipeline with a `unet` or a `transformer`.
        scale: how far each step is pushed away from the weakened prediction. Higher: the picture changes more, too
            high burns its colours. 0: no guidance. Usual: 0.8 to 4 with a UNet, 0.4 to 2 with a transformer.
        blocks: which self-attention is weakened: "auto" (the middle), "late" (a step costs less), "all" (strong: lower
            the scale), or addresses such as "mid", "in.4-8", "joint.7". Usual: "auto".
        iterations: Sinkhorn iterations of the weakened attention. Higher: slower, and the picture changes little.
            Usual: 2.
        strength: how strongly unlike tokens attract each other. Higher: attention is weakened in favour of what is
            unlike; 0: every token gets the same weight. Usual: 0.25 to 1.
        method: how attention is weakened. Usual: "asag"; the others are there to compare with.
        start: fraction of the steps before which nothing is guided. Higher: the layout stays as it was. Usual: 0. Or by
            noise: "sigma 5.4" is a noise level, "20%" a part of the model's noise schedule.
        end: fraction of the steps from which on nothing is guided. Lower: details stay as they were, and it is faster.
            Usual: 0.6 to 1. Or by noise, as start.
        schedule: how the scale runs between start and end. "linear" and "cosine" fall, so that late steps change the
            details less; "bell" rises and falls. Usual: "constant".
        rescale: how far the picture's contrast is pulled back to that without guidance, CFG's part included. Higher:
            flatter colours. Usual: 0; up to 1 against burnt colours.
        contrast: how much of what is mere contrast in the push stays. Lower: shapes change and colours don't burn.
            Usual: 1 with a UNet, 0 with a transformer.
        unit: what the scale means. "paper": it multiplies the push, whose size differs from block to block. "push": it
            is the size of the push, as an RMS of what the model predicts, in every picture and step.
            "cfg": it is that size beside CFG's own push. Usual: "paper"; with "push" scales of 0.02 to 0.2, with "cfg"
            of 0.1 to 0.5. Its earlier spelling, `adaptive` True or False, is read as "push" and "paper".
        blur: for the method "seg" alone, how far queries are blurred, in tokens. Higher: weaker attention. Usual:
            10000, from 9999 on their mean.
        reuse: share the work before the weakened attention with the normal pass. The picture is the same; False is
            slower and needs less memory.
        figures: keep what figures are drawn of. The picture is the same.
        tolerance: stop the iterations once they move the potentials by less than this. Higher: fewer iterations.
            Usual: 0, never.
        amount: how much of the weakened attention takes the place of the ordinary one. Lower: a weaker push, along
            another direction than a lower scale. 0: no guidance. Usual: 1.
        every: compute the push in every n-th step, 1 to 4, and use the last one in those between. Higher: faster and
            less exact. Usual: 1.
        enabled: False: nothing is guided.

    Nested use is allowed: the inner guidance holds until its context closes. Pipelines that share the denoiser
    (`from_pipe`) are guided, too, each by its own steps and CFG scale. Settings that change nothing (scale 0, enabled
    False, an empty window) touch nothing. A denoiser that torch.compile returned stays compiled; the perturbed pass
    runs the module it was made from. Beside code of others in the model each perturbed pass is one of its own.

    Yields what the guidance leaves for figures, if `figures` is True, otherwise None. Each pipeline call is a pass in
    it; `asag.trace_figure.draw` draws it:

        with asag_guidance(pipe, figures=True) as trace:
            image = pipe("a photo of a cat").images[0]
        draw(trace, 0, image, "a cat").save("figure.png")

    Raises:
        SettingsError: naming every unknown or bad setting.
        BlocksError: naming the block that the model doesn't have, and what it has.
        UnsupportedModel: naming what can't be guided, and why; a pipeline's call raises it for what shows only then.
    """
    known = {
        "enabled": enabled,
        "scale": scale,
        "blocks": blocks,
        "iterations": iterations,
        "strength": strength,
        "method": method,
        "start": start,
        "end": end,
        "schedule": schedule,
        "rescale": rescale,
        "contrast": contrast,
        "unit": unit,
        "blur": blur,
        "reuse": reuse,
        "figures": figures,
        "tolerance": tolerance,
        "amount": amount,
        "every": every,
    }
    # The earlier spelling of unit; beside another unit it is an error.
    more = current_names(unknown) if unit == AsagSettings.unit else unknown
    with _guided(pipe, _read({**known, **more})) as trace:
        yield trace


def _read(given: dict[str, Any]) -> AsagSettings:
    """The settings; raises SettingsError, also for those of the hires pass, which is a pipeline call of its own."""
    settings = AsagSettings.from_mapping(given)
    elsewhere = [f"{name}: {shown(given[name])}; allowed: nothing" for name in given if name.startswith("hires")]
    if elsewhere:
        raise SettingsError(elsewhere)
    return settings


@contextmanager
def _guided(pipe: Any, settings: AsagSettings) -> Iterator[Trace | None]:
    if settings.enabled and settings.no_effect:
        logger.warning("ASAG guides no step: %s", settings.no_effect)
    denoiser = denoiser_of(pipe)
    stack = _open.setdefault(denoiser, [])
    if stack and stack[-1].thread != get_ident():
        raise UnsupportedModel(f"model: {type(denoiser).__name__} is guided by another thread; allowed: one at a time")

    def holds(guidance: Guidance) -> bool:
        return stack[-1].guidance is guidance

    guidance = Guidance(pipe, denoiser, settings, holds) if settings.active else None
    with KERNELS.loss_named(), ExitStack() as undone:
        if guidance:
            guidance.attach(undone)
        stack.append(OpenGuidance(guidance, get_ident()))
        undone.callback(stack.pop)
        yield guidance.trace if guidance else None
    if guidance:
        guidance.log()
