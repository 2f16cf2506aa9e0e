"""Figures after the images: one for each, nothing else changed by them; hires, plots, inpainting and interruptions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from .payloads import asag, assert_same, image_request, request
from .server import Answer, WebUI, encode_image
from .test_hires import HIRES

Image = Callable[..., np.ndarray]
HEIGHT = 500


def ask(webui: WebUI, figures: bool, **changes: Any) -> Answer:
    return webui.txt2img(**request(**changes, alwayson_scripts=asag(blocks="mid, out.3-5", figures=figures)))


def test_a_figure_for_each_image_of_a_batch(webui: WebUI) -> None:
    without, answer = (ask(webui, figures, batch_size=2) for figures in (False, True))
    images, infotexts = answer.images, answer.infotexts
    assert (len(without.images), len(images), len(infotexts)) == (2, 4, 4)
    for image, expected in zip(images, without.images, strict=False):
        assert_same(image, expected)
    assert infotexts[:2] == infotexts[2:] == without.infotexts
    assert "figures" not in infotexts[0]
    for figure in images[2:]:
        assert figure.shape[0] == HEIGHT
        assert figure.shape[1] > 2 * HEIGHT
        assert (figure[0, 0] == 255).all()
        assert figure.std() > 20
    assert images[2].shape == images[3].shape
    assert np.abs(images[2] - images[3]).max() > 50


def test_batches_after_one_another(webui: WebUI) -> None:
    without, answer = (ask(webui, figures, n_iter=2) for figures in (False, True))
    assert len(answer.images) == 4
    for image, expected in zip(answer.images, without.images, strict=False):
        assert_same(image, expected)
    assert answer.infotexts[2:] == without.infotexts


def test_the_grid_is_of_the_pictures_alone(webui: WebUI) -> None:
    grids = [
        webui.txt2img(
            **request(
                batch_size=2,
                alwayson_scripts=asag(figures=figures),
                save_images=True,
                override_settings={"return_grid": True, "grid_save": False, "samples_save": False},
            )
        )
        for figures in (False, True)
    ]
    without, answer = grids
    assert (len(without.images), len(answer.images), len(answer.infotexts)) == (3, 5, 5)
    for image, expected in zip(answer.images, without.images, strict=False):
        assert_same(image, expected)
    assert answer.infotexts[:3] == without.infotexts
    assert answer.infotexts[3:] == without.infotexts[1:]


def test_hires_has_one_figure(webui: WebUI) -> None:
    without, answer = (ask(webui, figures, **HIRES) for figures in (False, True))
    image, figure = answer.images
    assert_same(image, without.image)
    assert figure.shape[0] == HEIGHT


@pytest.mark.parametrize("settings", [{"unit": "push", "scale": 0.1}, {"method": "pag"}, {"reuse": False}])
def test_any_settings_have_a_figure(webui: WebUI, guided: Image, settings: dict[str, Any]) -> None:
    image, figure = webui.txt2img(**request(alwayson_scripts=asag(**settings, figures=True))).images
    assert_same(image, guided(settings))
    assert figure.shape[0] == HEIGHT


def test_inpainting_of_a_masked_area_alone(webui: WebUI) -> None:
    mask = np.zeros((128, 128, 3))
    mask[32:64, 32:64] = 255
    area = {"mask": encode_image(mask), "inpaint_full_res": True, "inpainting_fill": 1}
    answer = webui.img2img(**image_request(**area, alwayson_scripts=asag(figures=True)))
    image, figure = answer.images
    assert image.shape == (128, 128, 3)
    assert figure.shape[0] == HEIGHT


@pytest.mark.parametrize(
    "settings", [{"figures": False}, {"figures": True, "enabled": False}, {"figures": True, "scale": 0}]
)
def test_no_figure_without_figures_or_guidance(webui: WebUI, settings: dict[str, Any]) -> None:
    answer = webui.txt2img(**request(alwayson_scripts=asag(**settings)))
    assert len(answer.images) == len(answer.infotexts) == 1


def test_a_plot_is_the_same_with_figures(webui: WebUI) -> None:
    known = webui.get("/sdapi/v1/script-info")
    script = next(each for each in known if each["name"] == "x/y/z plot" and not each["is_img2img"])
    axes = next(arg["choices"] for arg in script["args"] if arg["label"] == "X type")
    args: list[Any] = []
    for label, values in (("[ASAG] Scale", "8, 3"), ("Nothing", ""), ("Nothing", "")):
        args += [axes.index(label), values, []]
    on = ("Draw legend", "Include Sub Images", "Use text inputs instead of dropdowns")
    args += [arg["label"] in on for arg in script["args"][len(args) :]]
    without, answer = (ask(webui, figures, script_name="x/y/z plot", script_args=args) for figures in (False, True))
    assert len(answer.images) == len(without.images)
    for image, expected in zip(answer.images, without.images, strict=True):
        assert_same(image, expected)
    assert answer.infotexts == without.infotexts


def test_later_requests_have_none(webui: WebUI, plain: Image) -> None:
    assert len(ask(webui, True).images) == 2
    after = webui.txt2img(**request())
    assert len(after.images) == 1
    assert_same(after.image, plain())
