"""sd-webui-distributed shares a batch, and the cells of a plot, with a second WebUI (see workers.py).

What the other machine makes is compared with this one's picture of the same seed, which no other has a share in.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from . import workers
from .payloads import ROUNDING, asag, assert_differ, assert_same, largest_difference, request
from .server import Answer, WebUI, free_port

Image = Callable[..., np.ndarray]
SEED, WIDTH = 7, 128
NOT_GUIDED = "ASAG didn't guide what the worker not asked made"

pytestmark = pytest.mark.skipif(not workers.ADDRESS, reason="ASAG_WEBUI_WORKER isn't set: it names a second WebUI")


@pytest.fixture(autouse=True)
def shared(webui: WebUI) -> Iterator[None]:
    """Each request goes to the worker, too."""
    if not (webui.scratch / workers.FILE).exists():
        pytest.skip("sd-webui-distributed isn't installed")
    workers.use(webui.scratch, "asked")
    # With it the extension puts the infotexts of the workers' pictures one place too far in the API's answer.
    webui.set_options(return_grid=False)
    yield
    webui.set_options(return_grid=True)


def files(answer: Answer) -> list[str]:
    """The infotexts in the pictures' own files."""
    pictures = [Pillow.open(io.BytesIO(base64.b64decode(text))) for text in answer.body["images"]]
    return [picture.info["parameters"] for picture in pictures]


def assert_close(one: np.ndarray, other: np.ndarray) -> None:
    """The same picture, computed in batches of another size."""
    assert largest_difference(one, other) < ROUNDING


@pytest.mark.parametrize("settings", [None, {}, {"scale": 5, "blocks": "mid, out.3", "method": "pag", "end": "60%"}])
def test_a_shared_batch_is_guided_as_one_machine_guides_it(
    webui: WebUI, plain: Image, guided: Image, settings: dict[str, Any] | None
) -> None:
    scripts = {} if settings is None else asag(**settings)
    answer = webui.txt2img(**request(batch_size=4, alwayson_scripts=scripts))
    assert ["Worker Label: asked" in text for text in answer.infotexts] == [False, False, True, True]
    for number, picture in enumerate(answer.images):
        seed = SEED + number
        assert_close(picture, plain(seed=seed) if settings is None else guided(settings, seed=seed))
    assert ["ASAG: " in text for text in answer.infotexts + files(answer)] == [settings is not None] * 8
    assert "ASAG note" not in "".join(answer.infotexts)


def test_a_picture_that_a_worker_did_not_guide_says_so(webui: WebUI, plain: Image, guided: Image) -> None:
    workers.use(webui.scratch, "not asked")
    answer = webui.txt2img(**request(batch_size=2, alwayson_scripts=asag()))
    assert_close(answer.images[0], guided(seed=SEED))
    assert_close(answer.images[1], plain(seed=SEED + 1))
    for texts in (answer.infotexts, files(answer)):
        assert ["ASAG: scale" in text for text in texts] == [True, False]
        assert [NOT_GUIDED in text for text in texts] == [False, True]
    assert NOT_GUIDED in json.loads(answer.body["info"])["extra_generation_params"]["ASAG note"]
    after = webui.txt2img(**request(batch_size=2))
    assert "ASAG" not in "".join(after.infotexts + files(after))


def test_what_a_worker_notes_is_told(webui: WebUI) -> None:
    answer = webui.txt2img(**request(batch_size=2, alwayson_scripts=asag(start=0.9)))
    assert ["no step lies between start and end" in text for text in answer.infotexts] == [True, True]


def test_a_worker_that_fails_is_named(webui: WebUI, guided: Image) -> None:
    workers.use(webui.scratch, "gone", f"http://127.0.0.1:{free_port()}")
    answer = webui.txt2img(**request(batch_size=2, alwayson_scripts=asag()))
    assert_close(answer.image, guided(seed=SEED))
    assert ["The worker gone sent no pictures" in text for text in answer.infotexts] == [True]


@pytest.fixture
def plot(webui: WebUI) -> Callable[..., Answer]:
    """`plot((axis, values), (axis, values))`: each cell is the grid of a batch of two, the other machine's second."""
    known = webui.get("/sdapi/v1/script-info")
    script = next(each for each in known if each["name"] == "x/y/z plot" and not each["is_img2img"])
    axes = next(arg["choices"] for arg in script["args"] if arg["label"] == "X type")
    webui.set_options(return_grid=True, grid_save=False)

    def run(x: tuple[str, str], y: tuple[str, str] = ("Nothing", "")) -> Answer:
        args: list[Any] = []
        for label, values in (x, y, ("Nothing", "")):
            args += [axes.index(label), values, []]
        on = ("Draw legend", "Include Sub Images", "Use text inputs instead of dropdowns")
        args += [arg["label"] in on for arg in script["args"][len(args) :]]
        fields = {"script_name": "x/y/z plot", "script_args": args, "save_images": True, "batch_size": 2}
        return webui.txt2img(**request(**fields, alwayson_scripts=asag()))

    return run


def assert_cells(answer: Answer, expected: list[dict[str, Any]], guided: Image) -> None:
    """Both pictures of each cell are those of its own settings."""
    for cell, settings in zip(answer.images[1:], expected, strict=True):
        for number in (0, 1):
            picture = cell[:WIDTH, number * WIDTH : (number + 1) * WIDTH]
            assert_close(picture, guided(settings, seed=SEED + number))


def test_a_plot_of_numbers(plot: Callable[..., Answer], plain: Image, guided: Image) -> None:
    answer = plot(("[ASAG] Scale", "8, 0, 3"))
    assert_cells(answer, [{}, {"scale": 0}, {"scale": 3}], guided)
    assert_same(guided({"scale": 0}, seed=SEED + 1), plain(seed=SEED + 1))
    assert_differ(guided({"scale": 3}, seed=SEED + 1), guided(seed=SEED + 1))


def test_a_plot_of_lists_and_choices(plot: Callable[..., Answer], guided: Image) -> None:
    answer = plot(("[ASAG] Blocks", 'mid, "in.4, out.3"'), ("[ASAG] Method", "asag, pag"))
    expected = [{"blocks": blocks, "method": method} for method in ("asag", "pag") for blocks in ("mid", "in.4, out.3")]
    assert_cells(answer, expected, guided)


def test_a_plot_of_windows_by_noise_and_whole_numbers(plot: Callable[..., Answer], guided: Image) -> None:
    answer = plot(("[ASAG] End (noise)", "30%, 1"), ("[ASAG] Iterations", "1, 3"))
    assert_cells(answer, [{"end": end, "iterations": n} for n in (1, 3) for end in ("30%", 1)], guided)


def test_a_plot_of_checkpoints(webui: WebUI, plot: Callable[..., Answer], guided: Image) -> None:
    if not webui.sd15 or not webui.sdxl:
        pytest.skip("no two checkpoints (ASAG_WEBUI_SDXL)")
    checkpoints = (webui.sd15, webui.sdxl)
    answer = plot(("Checkpoint name", ", ".join(checkpoints)), ("[ASAG] Scale", "8"))
    for cell, checkpoint in zip(answer.images[1:], checkpoints, strict=True):
        for number in (0, 1):
            alone = guided(seed=SEED + number, override_settings={"sd_model_checkpoint": checkpoint})
            assert_close(cell[:WIDTH, number * WIDTH : (number + 1) * WIDTH], alone)
    webui.txt2img(**request())  # loads the first one again


def test_a_plots_cell_that_a_worker_did_not_guide_says_so(webui: WebUI, plot: Callable[..., Answer]) -> None:
    workers.use(webui.scratch, "not asked")
    answer = plot(("[ASAG] Scale", "8, 0, 3"))
    assert [NOT_GUIDED in text for text in answer.infotexts[1:]] == [True, False, True]
