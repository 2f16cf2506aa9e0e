"""Figures among a generation's images: traces and pictures of its batches are kept on `p` until the host is done.

Source: process_images_inner in modules/processing.py of all hosts. A picture and its infotext are added there one after
the other, masks without an infotext between them; then comes the grid, first in both lists; then the scripts'
`postprocess`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from asag.hosts.notes import note
from asag.settings import AsagSettings
from asag.trace import Trace
from asag.trace_figure import draw

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

KEPT = "_asag_figures"


@dataclass(frozen=True)
class Picture:
    """A picture of the result: the batch it is of and its place there, both from 0, its seed, and itself."""

    batch: int
    place: int
    seed: int | None
    image: Image


@dataclass
class Kept:
    """What figures are drawn of: a trace per batch, and the pictures in the order of the result's infotexts."""

    traces: dict[int, Trace] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)


def allowed(p: Any, settings: AsagSettings) -> AsagSettings:
    """The settings for a batch that begins, without figures where none can come.

    Scripts of the drop-down list (X/Y/Z plot, SD upscale, …) take apart what comes back, by its place; and Forge's
    button that upscales one picture of the gallery keeps one infotext for it.
    """
    if p.iteration == 0:
        p.__dict__.pop(KEPT, None)
    if not settings.figures:
        return settings
    by_script = bool(p.script_args) and bool(p.script_args[0])
    missing = find_spec("matplotlib") is None
    if missing and settings.active:
        note(p, "ASAG draws no figures: the Python package matplotlib is missing; pip install matplotlib adds it")
    return replace(settings, figures=not (missing or by_script or getattr(p, "txt2img_upscale", False)))


def keep_trace(p: Any, trace: Trace | None) -> None:
    """Keep what the guidance of the batch that begins will leave; None: nothing."""
    if trace is not None:
        p.__dict__.setdefault(KEPT, Kept()).traces[p.iteration] = trace


def keep_picture(p: Any, image: Image) -> None:
    """Keep a picture as the model drew it, before an inpainting is pasted into its surroundings."""
    kept = p.__dict__.get(KEPT)
    if kept is not None:
        seed = p.seeds[p.batch_index] if p.batch_index < len(p.seeds) else None
        kept.pictures.append(Picture(p.iteration, p.batch_index, seed, image))


def append(p: Any, processed: Any) -> None:
    """Add the figures after all other images of the result, each with its picture's infotext; nothing stays on `p`.

    What fails is logged and noted under the images, which stay as they were.
    """
    kept = p.__dict__.pop(KEPT, None)
    if kept is None:
        return
    try:
        drawn = _drawn(kept, processed)
    except Exception as error:
        logger.exception("ASAG: drawing the figures failed")
        message = f"ASAG: drawing the figures failed: {type(error).__name__}: {error}"
        note(p, message)
        # The host has joined the comments already.
        processed.comments += f"{message}\n"
        return
    if drawn:
        # Others' extra images may have come without infotexts.
        processed.infotexts += [processed.info] * (len(processed.images) - len(processed.infotexts))
        processed.images += [figure for figure, _ in drawn]
        processed.infotexts += [infotext for _, infotext in drawn]


def _drawn(kept: Kept, processed: Any) -> list[tuple[Image, str]]:
    """A figure and an infotext for each picture that was guided."""
    found = []
    for number, picture in enumerate(kept.pictures):
        trace, place = kept.traces.get(picture.batch), processed.index_of_first_image + number
        if trace is None or picture.place >= trace.images:
            continue
        infotext = processed.infotexts[place] if place < len(processed.infotexts) else processed.info
        title = f"image {number + 1}" if picture.seed is None else f"image {number + 1}, seed {picture.seed}"
        found.append((draw(trace, picture.place, picture.image, title), infotext))
    return found
