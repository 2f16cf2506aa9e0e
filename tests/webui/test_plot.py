"""X/Y/Z plots over the settings: axes take effect, cells don't leak into one another or into later requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from asag.settings import options

from .payloads import asag, assert_differ, assert_same, request
from .server import Answer, WebUI

Image = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def plot(webui: WebUI) -> Callable[..., Answer]:
    """`plot(x=("Scale", "0, 8"), …)`: the answer of a plot whose grid comes first, then the cells, row by row."""
    known = webui.get("/sdapi/v1/script-info")
    script = next(each for each in known if each["name"] == "x/y/z plot" and not each["is_img2img"])
    axes = next(arg["choices"] for arg in script["args"] if arg["label"] == "X type")

    def run(x: tuple[str, str], y: tuple[str, str] = ("Nothing", ""), **changes: Any) -> Answer:
        args: list[Any] = []
        for label, values in (x, y, ("Nothing", "")):
            args += [axes.index(label if label == "Nothing" else f"[ASAG] {label}"), values, []]
        # What comes after the axes, which hosts have added to: all off or 0 but these.
        on = ("Draw legend", "Include Sub Images", "Use text inputs instead of dropdowns")
        args += [arg["label"] in on for arg in script["args"][len(args) :]]
        return webui.txt2img(**request(script_name="x/y/z plot", script_args=args, **changes))

    return run


def test_every_setting_that_changes_the_picture_has_an_axis(webui: WebUI) -> None:
    known = webui.get("/sdapi/v1/script-info")
    script = next(each for each in known if each["name"] == "x/y/z plot" and not each["is_img2img"])
    axes = next(arg["choices"] for arg in script["args"] if arg["label"] == "X type")
    settings = webui.get("/asag/schema")["properties"]
    expected = []
    for name, each in settings.items():
        if name in options() and name != "enabled" and options()[name][1].changes_picture:
            expected.append(f"[ASAG] {each['title']}")
            expected += [f"[ASAG] {each['title']} (noise)"] if options()[name][1].noise else []
    earlier = ["[ASAG] Adaptive"]
    assert [axis for axis in axes if axis.startswith("[ASAG]")] == expected + earlier


def test_the_unit_has_an_axis_and_its_earlier_label_is_one_still(plot: Callable[..., Answer], guided: Image) -> None:
    units = plot(("Unit", "paper, push"), alwayson_scripts=asag(scale=0.3))
    earlier = plot(("Adaptive", "False, True"), alwayson_scripts=asag(scale=0.3))
    for cell, again, unit in zip(units.images[1:], earlier.images[1:], ("paper", "push"), strict=True):
        assert_same(cell, guided({"scale": 0.3, "unit": unit}))
        assert_same(again, cell)


def test_a_window_by_noise_has_axes_of_text(plot: Callable[..., Answer], plain: Image, guided: Image) -> None:
    answer = plot(("End (noise)", "30%, sigma 2, 1"), alwayson_scripts=asag())
    _, *cells = answer.images
    for cell, end in zip(cells, ("30%", "sigma 2", 1), strict=True):
        assert_same(cell, guided({"end": end}))
    assert_differ(cells[0], plain())


def test_cells_are_the_single_images(plot: Callable[..., Answer], plain: Image, guided: Image) -> None:
    """Two values that guide around one that doesn't: a cell that kept its neighbour's settings would show."""
    answer = plot(("Scale", "8, 0, 3"))
    _, first, second, third = answer.images
    assert_same(first, guided())
    assert_same(second, plain())
    assert_same(third, guided({"scale": 3}))
    notes = ["ASAG: scale" in text for text in answer.infotexts[1:]]
    assert notes == [True, False, True]


def test_two_axes_with_commas_in_blocks(plot: Callable[..., Answer], guided: Image) -> None:
    answer = plot(("Blocks", 'mid, "in.4, out.3"'), ("Method", "asag, pag"), alwayson_scripts=asag())
    cells = answer.images[1:]
    combinations = [(method, blocks) for method in ("asag", "pag") for blocks in ("mid", "in.4, out.3")]
    expected = [guided({"blocks": blocks, "method": method}) for method, blocks in combinations]
    for cell, image in zip(cells, expected, strict=True):
        assert_same(cell, image)


@pytest.mark.logs_errors
def test_bad_values_are_refused_before_the_first_cell(webui: WebUI, plot: Callable[..., Answer]) -> None:
    answer = plot(("Iterations", "2, 0"))
    assert answer.status == 422
    assert "iterations: 0; allowed: a whole number from 1" in str(answer.body)


def test_a_cell_whose_window_is_empty_is_the_plain_image_and_says_so(
    plot: Callable[..., Answer], plain: Image, guided: Image
) -> None:
    """The second of four cells; the one after it keeps nothing of its note."""
    answer = plot(("Start", "0.3, 0.8"), ("End", "0.6, 1"), alwayson_scripts=asag())
    windows = [(0.3, 0.6), (0.8, 0.6), (0.3, 1), (0.8, 1)]
    for (start, end), cell, text in zip(windows, answer.images[1:], answer.infotexts[1:], strict=True):
        empty = start > end
        assert_same(cell, plain() if empty or start == 0.8 else guided({"start": start, "end": end}))
        assert ("ASAG note" in text) == (start == 0.8)
        assert ("start, 0.8, isn't before end, 0.6" in text) == empty


def test_plots_leave_nothing_to_later_requests(plot: Callable[..., Answer], plain: Image, webui: WebUI) -> None:
    assert_differ(plot(("Scale", "8, 4")).images[1], plain())
    after = webui.txt2img(**request())
    assert_same(after.image, plain())
    assert "ASAG" not in after.infotexts[0]
