"""Figures: that every trace can be drawn, and where they come among a double of the host's result."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from asag.blocks import Address
from asag.settings import AsagSettings
from asag.trace import Trace
from asag.trace_figure import draw
from asag.webui import gallery_figures

SETTINGS = AsagSettings(enabled=True, figures=True)


def trace_of(images: int = 1, passes: int = 1, blocks: int = 2, shape: tuple[int, ...] = (4, 8, 12)) -> Trace:
    trace, generator = Trace(), torch.Generator().manual_seed(0)
    for _ in range(passes):
        trace.begin_pass(4)
        for call in range(1, 4):
            for block in range(blocks):
                trace.add_entropies(Address("layer", block, 0), 0.5 + 0.1 * call, 0.9)
            trace.add_step(call, 1.5 / call, torch.randn(images, *shape, generator=generator))
    return trace


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


# Drawing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"passes": 2}, {"blocks": 57}, {"blocks": 0}, {"shape": (4, 3, 8, 12)}, {"shape": (4, 1, 1)}],
    ids=["plain", "two passes", "many blocks", "no entropies", "frames", "one pixel"],
)
@pytest.mark.parametrize("picture", [None, Image.new("RGB", (96, 64), "green"), Image.new("RGBA", (30, 300))])
def test_draws(options, picture):
    figure = draw(trace_of(**options), 0, picture, "seed 7")
    assert figure.mode == "RGB"
    assert figure.height == 500
    assert 1000 < figure.width < 2000
    assert figure.getpixel((1, 1)) == (255, 255, 255)
    assert pixels(figure).std() > 20


def test_latents_that_are_no_image_leave_the_map_out():
    assert draw(trace_of(shape=(96, 16)), 0, Image.new("RGB", (64, 64)), "").width < 1000


def test_images_of_a_batch_have_their_own_figures():
    trace = trace_of(images=2)
    first, second = (pixels(draw(trace, image, None, "")) for image in (0, 1))
    assert np.abs(first - second).max() > 50


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_numbers_that_are_not_finite_are_drawn_all_the_same(value):
    trace = Trace()
    trace.begin_pass(1)
    trace.add_entropies(Address("mid", 0, 0), value, 1.0)
    trace.add_step(0, 1.0, torch.full((1, 4, 2, 2), value))
    assert draw(trace, 0, Image.new("RGB", (16, 16)), "").height == 500


@pytest.mark.parametrize("image", [-1, 1])
def test_an_image_that_was_not_guided_is_an_error(image):
    with pytest.raises(ValueError, match=rf"image: {image}; allowed: one of the 1"):
        draw(trace_of(), image, None, "")


# Among the host's images -------------------------------------------------------------------------------------------


class Job:
    """The double of a `p` with batches of two, and of what the host makes of it."""

    def __init__(self, script: int = 0) -> None:
        self.script_args, self.comments, self.iteration = (script, None), [], 0
        self.extra_generation_params = {}
        self.processed = SimpleNamespace(images=[], infotexts=[], info="info", comments="", index_of_first_image=0)

    def comment(self, text: str) -> None:
        self.comments.append(text)

    def batch(self, settings: AsagSettings = SETTINGS, trace: Trace | None = None, images: int = 2) -> AsagSettings:
        """A batch comes and goes; `images` come out of it, each with an infotext and a mask without one."""
        settings = gallery_figures.allowed(self, settings)
        self.seeds = [10 * self.iteration + place for place in range(2)]
        gallery_figures.keep_trace(self, trace if settings.figures else None)
        for place in range(images):
            self.batch_index = place
            picture = Image.new("RGB", (48, 32))
            gallery_figures.keep_picture(self, picture)
            self.processed.images += [picture, "mask"]
            self.processed.infotexts.append(f"seed {self.seeds[place]}")
        self.iteration += 1
        return settings

    def end(self, grid: bool = False) -> None:
        if grid:
            self.processed.images.insert(0, "grid")
            self.processed.infotexts.insert(0, "all")
            self.processed.index_of_first_image = 1
        gallery_figures.append(self, self.processed)


@pytest.mark.parametrize("grid", [False, True])
def test_figures_follow_all_images_with_the_infotexts_of_their_pictures(grid):
    job = Job()
    for _ in range(2):
        job.batch(trace=trace_of(images=2))
    before = [*["grid"] * grid, *job.processed.images]
    job.end(grid)
    images, infotexts = job.processed.images, job.processed.infotexts
    assert images[: len(before)] == before
    assert len(images) == len(infotexts) == len(before) + 4
    assert infotexts[len(before) :] == ["seed 0", "seed 1", "seed 10", "seed 11"]
    assert all(figure.height == 500 for figure in images[len(before) :])
    assert gallery_figures.KEPT not in job.__dict__


def test_an_interrupted_batch_has_figures_of_what_came_out():
    job = Job()
    job.batch(trace=trace_of(images=2), images=1)
    job.batch(trace=Trace())
    job.end()
    assert job.processed.infotexts[-1] == "seed 0"
    assert len(job.processed.images) == 2 * 3 + 1


def test_without_figures_nothing_is_kept_or_added():
    job = Job()
    assert job.batch(AsagSettings(enabled=True)) == AsagSettings(enabled=True)
    assert gallery_figures.KEPT not in job.__dict__
    job.end()
    assert len(job.processed.images) == 4


def test_a_script_of_the_drop_down_list_gets_none():
    job = Job(script=3)
    assert not job.batch().figures
    job.end()
    assert len(job.processed.images) == 4
    assert not job.comments


def test_the_button_that_upscales_one_picture_gets_none():
    job = Job()
    job.txt2img_upscale = True
    assert not job.batch().figures


def test_what_another_generation_left_is_forgotten():
    job = Job()
    job.batch(trace=trace_of(images=2))
    job.iteration = 0  # interrupted with an error, or a copy made in between
    job.batch(AsagSettings(enabled=True))
    assert gallery_figures.KEPT not in job.__dict__


def test_without_matplotlib_a_comment_and_no_trace(monkeypatch):
    monkeypatch.setattr(gallery_figures, "find_spec", lambda name: None)
    job = Job()
    assert not job.batch().figures
    assert "matplotlib is missing" in job.comments[0]
    job.end()
    assert len(job.processed.images) == 4
    gallery_figures.allowed(job, AsagSettings(figures=True))
    assert len(job.comments) == 1


def test_an_error_in_drawing_is_told_and_the_images_stay(monkeypatch, caplog):
    def failing(*args):
        raise RuntimeError("no ink")

    monkeypatch.setattr(gallery_figures, "draw", failing)
    job = Job()
    job.batch(trace=trace_of(images=2))
    job.end()
    assert len(job.processed.images) == 4
    assert len(job.processed.infotexts) == 2
    assert "drawing the figures failed: RuntimeError: no ink" in job.processed.comments
    assert job.comments == [job.processed.comments.strip()]
    assert "Traceback" in caplog.text
    assert gallery_figures.KEPT not in job.__dict__
