"""Extensions of others beside ASAG, as far as the host has them: those it works with, those it stands aside for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from .payloads import FAINT, ROUNDING, asag, assert_differ, assert_same, image_request, largest_difference
from .payloads import request as small
from .server import WebUI

Image = Callable[..., np.ndarray]
DYNAMIC_THRESHOLDING = {"Dynamic Thresholding (CFG Scale Fix)": {"args": [True, 3.0]}}


def needs(webui: WebUI, title: str) -> None:
    """Skip where the host has no script of that title."""
    if title.lower() not in webui.get("/sdapi/v1/scripts")["txt2img"]:
        pytest.skip(f"{title} isn't installed")


@pytest.mark.parametrize(
    "changes",
    [{}, {"batch_size": 2, "prompt": "a cat AND a dog :0.5"}, {"sampler_name": "DPM++ 2M SDE", "cfg_scale": 12}],
    ids=str,
)
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_dynamic_thresholding(
    webui: WebUI, plain: Image, guidance_works: Image, changes: dict[str, Any], rescale: float
) -> None:
    needs(webui, "Dynamic Thresholding (CFG Scale Fix)")
    changes = {"steps": 2, **changes}
    payload = small(alwayson_scripts=DYNAMIC_THRESHOLDING, **changes)
    alone = webui.txt2img(**payload).image
    assert_differ(alone, plain(**changes))
    guidance_works(payload, rescale=rescale)
    assert_same(
        webui.txt2img(**{**payload, "alwayson_scripts": {**DYNAMIC_THRESHOLDING, **asag(scale=0)}}).image, alone
    )


@pytest.mark.parametrize("keyword", ["AND_PERP", "AND_SALT", "AND_TOPK"])
@pytest.mark.parametrize("changes", [{}, {"batch_size": 2, "sampler_name": "DPM++ 2M SDE"}], ids=str)
def test_neutral_prompt(
    webui: WebUI, plain: Image, guided: Image, guidance_works: Image, keyword: str, changes: dict[str, Any]
) -> None:
    needs(webui, "Neutral Prompt")
    prompt, changes = f"a cat {keyword} a dog :1.5", {"steps": 2, **changes}
    assert_differ(plain(prompt=prompt, **changes), plain(prompt="a cat AND a dog :1.5", **changes))
    guidance_works(small(prompt=prompt, **changes))
    assert_same(guided({"scale": 0}, prompt=prompt, **changes), plain(prompt=prompt, **changes))


def tiled_diffusion(method: str, *regions: Any) -> dict[str, Any]:
    """The value of `alwayson_scripts` for tiles of 24 latents, in the order of Tiled Diffusion's own ui()."""
    sizes = [False, True, 1024, 1024, 24, 24, 8, 4]
    upscaling, noise_inversion = ["None", 2.0], [False, 10, 1, 1, 64]
    return {
        "Tiled Diffusion": {
            "args": [True, method, *sizes, *upscaling, *noise_inversion, False, bool(regions), True, False, *regions]
        }
    }


@pytest.fixture(scope="module")
def tiles(webui: WebUI) -> None:
    needs(webui, "Tiled Diffusion")
    # Its second method leaves the model's own method on the model's instance: before the guard looks at it.
    size = {"width": 256, "height": 256}
    webui.txt2img(**small(steps=1, alwayson_scripts=tiled_diffusion("Mixture of Diffusers"), **size))


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("method", ["MultiDiffusion", "Mixture of Diffusers"])
@pytest.mark.parametrize(
    "changes", [{}, {"batch_size": 2, "prompt": "a cat AND a dog :0.5"}, {"sampler_name": "DDIM"}], ids=str
)
def test_tiled_diffusion(
    webui: WebUI, plain: Image, guidance_works: Image, method: str, changes: dict[str, Any]
) -> None:
    changes = {"width": 256, "height": 256, "steps": 2, **changes}
    payload = small(alwayson_scripts=tiled_diffusion(method), **changes)
    assert_differ(webui.txt2img(**payload).image, plain(**changes))
    guidance_works(payload)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("method", ["MultiDiffusion", "Mixture of Diffusers"])
def test_tiled_image_to_image(guidance_works: Image, method: str) -> None:
    guidance_works(image_request(width=256, height=256, alwayson_scripts=tiled_diffusion(method)))


def has_conflict(webui: WebUI, payload: dict[str, Any], who: str) -> None:
    """ASAG leaves the image as it is without it, says so once in the log and in a note, and writes no settings."""
    alone = webui.txt2img(**payload)
    written = len(webui.log)
    both = webui.txt2img(**{**payload, "alwayson_scripts": {**payload["alwayson_scripts"], **asag()}})
    assert_same(both.image, alone.image)
    message = f"ASAG was off for this image: it can't run beside {who}"
    assert [text.replace(f', ASAG note: "{message}"', "") for text in both.infotexts] == alone.infotexts
    assert all(message in text for text in both.infotexts)
    assert webui.log[written:].count(message) == 1


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("method", ["MultiDiffusion", "Mixture of Diffusers"])
def test_aside_for_tiled_diffusions_regions(webui: WebUI, plain: Image, guidance_works: Image, method: str) -> None:
    region = [True, 0.1, 0.1, 0.5, 0.5, "a dog", "", "Background", 0.2, 5]
    size = {"width": 256, "height": 256, "steps": 2}
    payload = small(alwayson_scripts=tiled_diffusion(method, *region), **size)
    assert_differ(webui.txt2img(**payload).image, plain(**size))
    has_conflict(webui, payload, "Tiled Diffusion's region control")
    # Neither side's state outlives the request.
    guidance_works(small())


@pytest.mark.parametrize("calculation", ["Attention", "Latent"])
def test_aside_for_regional_prompter(webui: WebUI, plain: Image, guidance_works: Image, calculation: str) -> None:
    needs(webui, "Regional Prompter")
    values = [True, False, "Matrix", "Columns", "Mask", "Prompt", "1,1", "", False, False, False, calculation]
    payload = small(prompt="a cat BREAK a dog", alwayson_scripts={"Regional Prompter": {"args": values}})
    assert_differ(webui.txt2img(**payload).image, plain(prompt="a cat BREAK a dog"))
    has_conflict(webui, payload, "Regional Prompter")
    # A new prompt each time: neutral prompt, if installed as well, confuses one that the host has cached with RP's.
    guidance_works(small(prompt=f"a bird, {calculation}"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_size": 2},
        {"override_settings": {"batch_cond_uncond": False}},
        {"negative_prompt": "a long negative prompt, " * 20},
        {"sampler_name": "DDIM"},
        {"cfg_scale": 1},
    ],
    ids=str,
)
def test_negpip(webui: WebUI, plain: Image, changes: dict[str, Any]) -> None:
    needs(webui, "NegPiP")
    changes = {"prompt": "a cat on a chair, (a red hat:-1.5)", **changes}
    script = {"NegPiP": {"args": [True]}}
    alone = webui.txt2img(**small(alwayson_scripts=script, **changes)).image

    def guided(**settings: Any) -> np.ndarray:
        return webui.txt2img(**small(alwayson_scripts={**script, **asag(**settings)}, **changes)).image

    # NegPiP leaves attributes on the modules when it is first used.
    assert_differ(alone, plain(**changes))
    shared = guided()
    told = webui.last_reuse()
    assert (told["shared"], told["whole"] >= 2) == (0, True)
    assert "sd-webui-negpip" in told["why"]
    assert_differ(shared, alone)
    assert largest_difference(guided(reuse=False), shared) <= 1
    assert largest_difference(guided(scale=FAINT), alone) < ROUNDING
    assert_same(webui.txt2img(**small(alwayson_scripts=script, **changes)).image, alone)
    # With ordinary attention as the operator the perturbed pass is the host's own, prompts and all.
    delta = webui.softmax_delta(**small(alwayson_scripts={**script, **asag(scale=1)}, **changes))
    assert delta["calls"] > 0
    assert len(delta["delta"]) >= 2
    assert max(delta["delta"]) < 1e-4
