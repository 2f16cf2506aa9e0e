"""What changes a model's weights, words or tokens: LoRA, hypernetworks, embeddings, Token merging, HyperTile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import requests

from .payloads import ROUNDING, assert_differ, image_request, largest_difference
from .payloads import request as small
from .server import WebUI

Image = Callable[..., np.ndarray]
HIRES = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.7}


@pytest.fixture(scope="module", params=["lora", "hypernet", "embedding"])
def network(request: pytest.FixtureRequest, webui: WebUI) -> str:
    """What a prompt says to use one: of the host's files, the first with sd15 in its name."""
    if request.param == "embedding":
        names = list(webui.get("/sdapi/v1/embeddings")["loaded"])
    else:
        try:
            names = [each["name"] for each in webui.get(f"/sdapi/v1/{request.param.replace('net', 'network')}s")]
        except requests.HTTPError:
            pytest.skip("this host has no hypernetworks")
    name = next((each for each in sorted(names) if "sd15" in each.lower()), None)
    if name is None:
        pytest.skip(f"no {request.param} called *sd15* among {names}")
    word = name if request.param == "embedding" else f"<{request.param}:{name}:1>"
    # The host leaves attributes of its own on the modules when it first loads one: before the guard looks at them.
    webui.txt2img(**small(prompt=word, steps=1))
    webui.txt2img(**small(steps=1))
    return f"a cat on a chair, {word}"


@pytest.mark.parametrize(
    "changes",
    [{}, {"batch_size": 2}, {"cfg_scale": 1}, {"sampler_name": "DDIM"}, HIRES],
    ids=["plain", "batch", "CFG 1", "DDIM", "hires"],
)
def test_network(plain: Image, guidance_works: Image, network: str, changes: dict[str, Any]) -> None:
    # A network that can't load is only a line in the log; its image is the plain one.
    assert_differ(plain(prompt=network, **changes), plain(prompt="a cat on a chair", **changes))
    guidance_works(small(prompt=network, **changes), blocks="in.1, mid, out.11")


def test_network_for_one_part_of_the_prompt(guidance_works: Image, network: str) -> None:
    guidance_works(small(prompt=f"a dog AND {network} :0.7"))


def test_image_to_image(guidance_works: Image, network: str) -> None:
    guidance_works(image_request(prompt=network))


def test_unguided_afterwards(webui: WebUI, plain: Image, guided: Image, network: str) -> None:
    before = plain()
    guided({"blocks": "all"}, prompt=network)
    assert largest_difference(webui.txt2img(**small()).image, before) < ROUNDING


@pytest.mark.parametrize("method", ["asag", "pag", "seg", "uniform", "similarity"])
def test_the_weakened_attention_has_the_network_too(plain: Image, guided: Image, network: str, method: str) -> None:
    """At 64 px the middle block has a single token, which every method attends to wholly: what is weakened there is
    then the host's own attention, unless what the network does to values or output is missing from it."""
    one_token = {"prompt": network, "width": 64, "height": 64}
    assert_differ(plain(**one_token), plain(**one_token | {"prompt": "a cat on a chair"}))
    assert largest_difference(guided({"method": method, "scale": 100}, **one_token), plain(**one_token)) < ROUNDING


@pytest.fixture(scope="module")
def token_merging(webui: WebUI) -> dict[str, Any]:
    """The field of a request that merges half of the tokens."""
    merging = {"override_settings": {"token_merging_ratio": 0.5}}
    assert webui.post("/asag-probe/uncover").status == 200
    # The host leaves a note on the model when it first merges: before the guard looks at it.
    webui.txt2img(**small(steps=1, **merging))
    return merging


@pytest.mark.parametrize("changes", [{}, {"batch_size": 2}, HIRES], ids=["plain", "batch", "hires"])
def test_token_merging(
    plain: Image, guidance_works: Image, token_merging: dict[str, Any], changes: dict[str, Any]
) -> None:
    # Tokens are merged in the layers of full resolution only.
    assert_differ(plain(**token_merging, **changes), plain(**changes))
    guidance_works(small(**token_merging, **changes), blocks="in.1, mid, out.9-11")


@pytest.fixture(scope="module")
def hypertile(webui: WebUI) -> Iterator[None]:
    """HyperTile with tiles of 128 px, and with its choice among three tilings at every layer."""
    if "hypertile" not in map(str.lower, webui.get("/sdapi/v1/scripts")["txt2img"]):
        pytest.skip("HyperTile isn't built in")
    webui.set_options(hypertile_enable_unet=True, hypertile_max_tile_unet=128, hypertile_swap_size_unet=3)
    # It hooks its layers at the first use, once and for all: before the guard looks at them.
    webui.txt2img(**small(steps=1))
    yield
    webui.set_options(hypertile_enable_unet=False, hypertile_max_tile_unet=256, hypertile_swap_size_unet=3)


@pytest.mark.usefixtures("hypertile")
@pytest.mark.parametrize(("method", "blocks"), [("asag", "mid"), ("asag", "all"), ("pag", "in.1, out.9-11")])
def test_hypertile(guidance_works: Image, method: str, blocks: str) -> None:
    # Tilings are drawn from a random sequence: a draw too many changes the picture, however faint the guidance. That
    # shows as far as the late steps weigh in the image, so their sigmas have to fall slowly.
    guidance_works(small(width=256, height=256, scheduler="SGM Uniform"), method=method, blocks=blocks)
