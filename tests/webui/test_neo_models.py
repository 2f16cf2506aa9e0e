"""What Forge Neo runs beside its kinds of model: videos of several frames, Wan 2.2's two models, images of reference,
quantised weights, other SDXLs. make_checkpoints_forge.py writes the checkpoints; those that aren't there skip."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from .payloads import asag, assert_differ, assert_same, image_request, picture, request
from .server import WebUI, encode_image

Image = Callable[..., np.ndarray]

# In single precision. What differs although nothing is perturbed: kernels for other numbers of rows.
ROUNDING_OF_DELTA = 1e-5
STRONG = {"scale": 100, "blocks": "all"}
STITCHES = ("imagestitch integrated", "多图参考")


def small(**changes: Any) -> dict[str, Any]:
    sampling = {"steps": 2, "scheduler": "Simple", "distilled_cfg_scale": 3.5}
    return request(**{**sampling, **changes})


def video(frames: int, **changes: Any) -> dict[str, Any]:
    """A video model's batch is its frames: four of them make one frame of latents, after a first."""
    return small(width=64, height=64, batch_size=frames, **changes)


@pytest.fixture(scope="module")
def loaded(request: pytest.FixtureRequest, webui: WebUI) -> Iterator[str]:
    """The host with the checkpoint of that file name; afterwards it has its SD1.5 again."""
    file = request.param
    if not (webui.folder / "models" / "Stable-diffusion" / file).exists():
        pytest.skip(f"this host has no {file}")
    webui.set_options(sd_model_checkpoint=file)
    # The host loads it now, and makes what it makes once. One of the two fails where a model wants an image, or none.
    webui.txt2img(**video(1, steps=1))
    webui.img2img(**image_request(**video(1, steps=1, cfg_scale=1)))
    yield file
    webui.set_options(sd_model_checkpoint=webui.sd15)
    webui.txt2img(**small(steps=1))


def with_model(*files: str) -> Any:
    return pytest.mark.parametrize("loaded", files, indirect=True)


@pytest.fixture
def takes_part(webui: WebUI, guidance_works: Image) -> Callable[..., None]:
    """`takes_part(payload)`: guidance works, shares work with the host's own pass, and is nothing where SoftMax is the
    operator."""

    def check(payload: dict[str, Any]) -> None:
        guidance_works(payload, **STRONG)
        scripts = {**payload.get("alwayson_scripts", {}), **asag(scale=1, blocks="all")}
        told = webui.softmax_delta(**{**payload, "alwayson_scripts": scripts})
        assert told["calls"]
        assert max(told["delta"]) < ROUNDING_OF_DELTA, told
        reuse = webui.last_reuse()
        assert reuse["shared"], reuse
        assert not reuse["whole"], reuse

    return check


needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="Neo writes a video with FFmpeg")


@needs_ffmpeg
@with_model("tiny-wan.safetensors")
def test_several_frames(webui: WebUI, loaded: str, takes_part: Any) -> None:
    assert len(webui.txt2img(**video(9)).images) == 9
    takes_part(video(9))


@needs_ffmpeg
@with_model("tiny-wan-images.safetensors")
def test_video_from_an_image(loaded: str, takes_part: Any) -> None:
    takes_part(image_request(**video(5), denoising_strength=1))


@needs_ffmpeg
@with_model("tiny-wan.safetensors")
def test_two_models_of_a_video(webui: WebUI, loaded: str, guided: Image) -> None:
    """The setting Reload "state_dict" Only is left out: over the API Neo doesn't put the first model's weights back."""
    refined = {"refiner_checkpoint": "tiny-wan-low.safetensors", "refiner_switch_at": 0.5}
    payload = video(5, steps=4, **refined, override_settings={"refiner_use_steps": True})
    webui.txt2img(**payload)  # the first of equal requests differs from those after it, without ASAG as well
    answer = webui.txt2img(**payload)
    assert "Refiner: " in answer.infotexts[0]
    # The first model's last step, then the second one's first.
    for start in (0.25, 0.5):
        assert_differ(guided({**STRONG, "start": start, "end": start + 0.25}, **payload), answer.image)
    assert_same(webui.txt2img(**payload).image, answer.image)


@with_model(*(f"tiny-{kind}.safetensors" for kind in ("flux-kontext", "klein", "qwen-edit")))
def test_images_of_reference(webui: WebUI, loaded: str, takes_part: Any) -> None:
    titles = [each["name"] for each in webui.get("/sdapi/v1/script-info") if not each["is_img2img"]]
    stitch = next((title for title in titles if title in STITCHES), None)
    if stitch is None:
        pytest.skip("this host has no ImageStitch")
    references = [encode_image(picture()), encode_image(picture(192, 128)[::-1])]
    payload = small(alwayson_scripts={stitch: {"args": [True, references, 128]}})
    assert_differ(webui.txt2img(**payload).image, webui.txt2img(**small()).image)
    takes_part(payload)
    webui.txt2img(**small())  # the host forgets its references


@with_model("tiny-anima.safetensors")
def test_image_of_reference_for_anima(webui: WebUI, loaded: str, takes_part: Any) -> None:
    payload = image_request(**small(steps=3), denoising_strength=0.9)
    referring = {**payload, "override_settings": {"anima_do_reference": True}}
    # This order: the host's next image without a reference still has it.
    alone = webui.img2img(**payload).image
    assert_differ(webui.img2img(**referring).image, alone)
    takes_part(referring)


@with_model("tiny-flux-fp8.safetensors", "tiny-flux-q8.gguf")
def test_quantised_weights(webui: WebUI, loaded: str, takes_part: Any) -> None:
    takes_part(small())
    assert "double.0" in {each["address"] for each in webui.get("/asag/blocks")["blocks"]}


@with_model("tiny-flux.safetensors")
def test_samplers_in_a_flow(loaded: str, webui: WebUI, guidance_works: Image, subtests: pytest.Subtests) -> None:
    """Some samplers go another way there, and one gives nothing but NaN elsewhere."""
    for sampler in webui.get("/sdapi/v1/samplers"):
        name = sampler["name"]
        if name.endswith((" a", " RF", "SDE", "CFG++")) or name in ("LCM", "Res Multistep", "Kohaku LoNyu Yog"):
            with subtests.test(name):
                guidance_works(small(sampler_name=name, steps=4), **STRONG)


@with_model("tiny-mugen.safetensors", "tiny-sdxl-rectified.safetensors")
def test_other_sdxls(webui: WebUI, loaded: str, takes_part: Any) -> None:
    takes_part(small())
    assert not webui.get("/asag/blocks")["experimental"]


@pytest.mark.logs_errors
@with_model("tiny-pid.safetensors")
def test_pid_is_refused(webui: WebUI, loaded: str) -> None:
    payload = image_request(**small(steps=1, width=64, height=64, cfg_scale=1))
    webui.img2img(**payload)  # the first of equal requests differs from those after it, without ASAG as well
    alone = webui.img2img(**payload)
    if alone.status != 200:
        pytest.skip(f"the host by itself fails at this request: {alone.body}")
    answer = webui.img2img(**payload, alwayson_scripts=asag())
    assert answer.status == 422, answer.body
    assert "PidNet" in str(answer.body["detail"])
    # The host encodes the image with torch's own random numbers, which went on in a request that drew no others.
    webui.img2img(**payload)
    assert_same(webui.img2img(**payload).image, alone.image)
