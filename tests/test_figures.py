"""Figures: that every trace can be drawn, and where they come among a double of the host's result."""

from __future__ import annotations

from types import SimpleNamespace

import matplotlib.figure
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


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, as matplotlib knows them."""
    made = []

    class Kept(matplotlib.figure.Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(matplotlib.figure, "Figure", Kept)
    return made


def test_lines_are_scale_and_size_of_the_image_by_model_call(figures):
    trace = trace_of(images=2, passes=2)
    draw(trace, 1, None, "seed 7")
    assert figures[0].get_suptitle() == "ASAG · seed 7"
    above, below, *_ = figures[0].axes
    for axes in (above, below, figures[0].axes[-1]):
        assert [side for side, spine in axes.spines.items() if spine.get_visible()] == ["left", "bottom"]
    for axes, name in ((above, "scales"), (below, "pushes")):
        first, divider, second = axes.lines[0], axes.lines[2], axes.lines[1]
        for line, traced in ((first, trace.passes[0]), (second, trace.passes[1])):
            assert line.get_xdata().tolist() == [step.number + 1 for step in traced.steps]
            assert line.get_ydata().tolist() == [getattr(step, name)[1] for step in traced.steps]
        assert set(divider.get_xdata()) == {4.5}
        largest = max(getattr(step, name)[1] for step in trace.steps)
        assert axes.get_ylim() == pytest.approx((0, 1.12 * largest))
    assert above.get_xlim() == below.get_xlim() == pytest.approx((0.4, 8.6))
    assert [text.get_visible() for text in above.get_xticklabels()] == [False] * len(above.get_xticklabels())
    assert "passes divided" in below.get_xlabel()
    draw(trace_of(), 0, None, "")
    assert len(figures[1].axes[0].lines) == 1
    assert figures[1].axes[0].get_xlim() == pytest.approx((0.4, 4.6))
    assert figures[1].axes[1].get_xlabel() == "model call"


def test_calls_beyond_those_announced_are_in_the_figure(figures):
    trace = Trace()
    trace.begin_pass(2)
    for call in range(5):
        trace.add_step(call, 0.0, torch.full((1, 4, 2, 2), 0.01))
    draw(trace, 0, None, "")
    assert figures[0].axes[0].get_xlim() == pytest.approx((0.4, 5.6))
    assert figures[0].axes[0].get_ylim() == (0, 1)
    assert figures[0].axes[1].get_ylim() == (0, 1)


def test_a_small_push_fills_its_panel_too(figures):
    trace = Trace()
    trace.begin_pass(1)
    trace.add_step(0, 0.5, torch.full((1, 4, 2, 2), 0.01))
    draw(trace, 0, None, "")
    assert figures[0].axes[0].get_ylim() == pytest.approx((0, 0.56))
    assert figures[0].axes[1].get_ylim() == pytest.approx((0, 0.0056))


def test_the_push_is_drawn_beside_cfgs_own_where_there_is_cfg(figures):
    trace, delta = Trace(), torch.ones(1, 4, 2, 2)
    trace.begin_pass(3)
    trace.add_step(0, 0.5, 0.4 * delta, cfg=0.3 * delta)
    trace.add_step(1, 0.5, 0.8 * delta, cfg=0.1 * delta)
    trace.add_step(2, 0.5, 0.6 * delta)
    draw(trace, 0, None, "")
    below = figures[0].axes[1]
    push, cfg = below.lines
    assert push.get_xydata().tolist() == [[1, pytest.approx(0.2)], [2, pytest.approx(0.4)], [3, pytest.approx(0.3)]]
    assert cfg.get_xydata().tolist() == [[1, pytest.approx(0.3)], [2, pytest.approx(0.1)]]
    assert push.get_color() != cfg.get_color()
    named = zip(below.get_legend().get_texts(), below.get_legend().get_lines(), strict=True)
    assert {text.get_text(): line.get_color() for text, line in named} == {
        "ASAG": push.get_color(),
        "CFG": cfg.get_color(),
    }
    draw(trace_of(), 0, None, "")
    assert figures[1].axes[1].get_legend() is None


@pytest.mark.parametrize("picture", [None, Image.new("RGB", (96, 64), (250, 250, 250))])
def test_the_map_lies_over_the_picture_and_its_bar_spans_it(figures, picture):
    trace = trace_of()
    draw(trace, 0, picture, "")
    axes, heat = figures[0].axes[2], trace.heat(0).numpy()
    shown = axes.images[-1]
    np.testing.assert_array_equal(shown.get_array(), heat)
    assert (shown.norm.vmin, shown.norm.vmax) == pytest.approx((heat.min(), heat.max()))
    assert len(axes.images) == (1 if picture is None else 2)
    width, height = (12, 8) if picture is None else (96, 64)
    assert all(tuple(image.get_extent()) == (0, width, height, 0) for image in axes.images)
    assert [list(axes.get_xticks()), list(axes.get_yticks())] == [[], []]
    if picture is not None:
        under = axes.images[0]
        assert (under.get_array().min(), under.norm.vmin) == (250, 0)
        assert float(under.to_rgba(255)[0]) < 0.6  # dimmed: white isn't hot
        shades = shown.cmap(np.linspace(0, 1, 256))[:, 3]
        assert (shades[0], shades[-1]) == pytest.approx((0.15, 0.85), abs=1e-3)


@pytest.mark.parametrize(("size", "panel"), [((96, 64), 6.95), ((10, 100), 2.95), ((100, 10), 9.75)])
def test_the_maps_panel_is_as_wide_as_the_picture_within_limits(size, panel):
    """Inches: 4 for the height, something for the bar, and no more than a picture of 1 : 2 or 2.2 : 1."""
    figure = draw(trace_of(), 0, Image.new("RGB", size), "")
    # Part of a dot is cut off or rounded, as the version of matplotlib has it.
    assert figure.size == (pytest.approx(100 * (4.8 + panel + 4.4), abs=1), 500)


def test_entropies_are_means_of_a_blocks_layers_with_a_line_between(figures):
    trace = Trace()
    trace.begin_pass(1)
    for block, layer, pair in (("in", 0, (0.5, 0.9)), ("in", 1, (0.7, 1.0)), ("out", 0, (0.2, 0.4))):
        trace.add_entropies(Address(block, 3, layer), *pair)
    trace.add_step(0, 1.0, torch.ones(1, 4, 2, 2))
    draw(trace, 0, None, "")
    axes = next(each for each in figures[0].axes if each.get_title() == "Entropy of attention")
    joins, (ordinary, weakened) = axes.lines[:2], axes.lines[2:]
    assert [list(line.get_xdata()) for line in joins] == [[0, 0], [1, 1]]
    assert [list(line.get_ydata()) for line in joins] == [pytest.approx([0.6, 0.95]), [0.2, 0.4]]
    assert ordinary.get_ydata() == pytest.approx([0.6, 0.2])
    assert weakened.get_ydata() == pytest.approx([0.95, 0.4])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["ordinary", "weakened"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["in.3", "out.3"]
    assert axes.get_xlim() == pytest.approx((-0.8, 1.8))
    span = 1 - (0.2 - 0.06)
    assert axes.get_ylim() == pytest.approx((1 - 1.04 * span, 1 + 0.06 * span))


@pytest.mark.parametrize(
    ("layers", "line"),
    [(0, ""), (1, "\nof the heads in.0.0: 0, 3"), (4, "\nof the heads in.0.0: 0, 3; in.1.0: 0, 3; 2 more layers")],
)
def test_the_heads_that_were_weakened_are_named(figures, layers, line):
    trace = trace_of(blocks=layers)
    trace.heads = {Address("in", number, 0): [(0, 3)] for number in range(layers)}
    draw(trace, 0, None, "heads")
    assert f"Entropy of attention{line}" in [each.get_title() for each in figures[0].axes]


def test_the_heads_of_several_pictures_are_named(figures):
    trace = trace_of(blocks=1)
    trace.heads = {Address("in", 0, 0): [(0, 3), (1, 2)]}
    draw(trace, 0, None, "heads")
    assert "Entropy of attention\nof the heads in.0.0: 0, 3 or 1, 2" in [each.get_title() for each in figures[0].axes]


@pytest.mark.parametrize(("blocks", "labels"), [(18, 18), (19, 10), (57, 15)])
def test_of_many_blocks_some_are_named(figures, blocks, labels):
    draw(trace_of(blocks=blocks), 0, None, "")
    axes = next(each for each in figures[0].axes if each.get_title() == "Entropy of attention")
    assert len(axes.get_xticks()) == labels
    assert len(axes.lines) == blocks + 2


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


def test_each_figure_is_of_its_batch_and_place_and_has_its_number_and_seed(monkeypatch):
    drawn = []

    def recorded(trace, image, picture, title):
        drawn.append((trace, image, picture, title))
        return f"figure {len(drawn)}"

    monkeypatch.setattr(gallery_figures, "draw", recorded)
    job, traces = Job(), [trace_of(images=2), trace_of(images=1)]
    for trace in traces:
        job.batch(trace=trace)
    job.processed.images.append("an extra image of others, without an infotext")
    pictures = [each for each in job.processed.images if isinstance(each, Image.Image)]
    job.end()
    # Of the second batch one image was guided.
    assert [each[:2] for each in drawn] == [(traces[0], 0), (traces[0], 1), (traces[1], 0)]
    assert [each[2] for each in drawn] == pictures[:3]
    assert [each[3] for each in drawn] == ["image 1, seed 0", "image 2, seed 1", "image 3, seed 10"]
    assert job.processed.images[-3:] == ["figure 1", "figure 2", "figure 3"]
    assert len(job.processed.infotexts) == len(job.processed.images)
    assert job.processed.infotexts[4:-3] == ["info"] * 5
    assert job.processed.infotexts[-3:] == ["seed 0", "seed 1", "seed 10"]


def test_a_picture_without_a_seed_or_an_infotext_has_a_figure_all_the_same(monkeypatch):
    titles = []
    monkeypatch.setattr(gallery_figures, "draw", lambda *given: titles.append(given[-1]))
    job = Job()
    settings = gallery_figures.allowed(job, SETTINGS)
    gallery_figures.keep_trace(job, trace_of(images=3))
    job.seeds = [7]
    for place in range(3):
        job.batch_index = place
        gallery_figures.keep_picture(job, Image.new("RGB", (8, 8)))
    job.processed.infotexts.append("seed 7")
    job.end()
    assert settings == SETTINGS
    assert titles == ["image 1, seed 7", "image 2", "image 3"]
    assert job.processed.infotexts == ["seed 7", "seed 7", "info", "info"]


def test_figures_that_change_nothing_else(monkeypatch):
    """Without a script of the list, with arguments or with none; where guidance is off nothing is missed."""
    job = Job()
    for arguments in ((), None, (0,), (None, 5)):
        job.script_args = arguments
        assert gallery_figures.allowed(job, SETTINGS) == SETTINGS
    monkeypatch.setattr(gallery_figures, "find_spec", lambda name: None if name == "matplotlib" else object())
    off = AsagSettings(enabled=False, figures=True)
    assert gallery_figures.allowed(job, off) == AsagSettings(enabled=False)
    assert job.comments == []
