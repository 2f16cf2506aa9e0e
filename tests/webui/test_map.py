"""The blocks of the checkpoint that is chosen, from its file: the same as the loaded model says, and checked before the
host loads it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from asag.hosts.checkpoints import contents

from .payloads import asag, assert_same, request
from .server import WebUI

KINDS = ("sd15", "sdxl", "flux", "flux-schnell", "klein", "chroma", "sd3", "lumina", "zimage", "ernie", "wan")
# What the hosts write to their log when they load a checkpoint: Forge and Neo, A1111 and reForge.
LOADS = ("Loading Model: ", "Loading weights [")


def small(**changes: Any) -> dict[str, Any]:
    return request(**{"steps": 1, "width": 256, "height": 256, "scheduler": "Simple", **changes})


def folder(webui: WebUI) -> Path:
    return webui.folder / "models" / "Stable-diffusion"


def blocks(answer: dict[str, Any]) -> list[tuple[str, int]]:
    return [(each["address"], each["layers"]) for each in answer["blocks"]]


def of_the_file(path: Path) -> list[tuple[str, int]]:
    names = [str(address).rpartition(".")[0] for address in contents(path).addresses]
    names = ["mid" if name.startswith("mid") else name for name in names]
    return [(name, names.count(name)) for name in dict.fromkeys(names)]


@pytest.fixture(scope="class", params=KINDS)
def told(request: pytest.FixtureRequest, webui: WebUI) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The name of a checkpoint, and what the map is told when it is chosen and once more when it is loaded."""
    name = f"tiny-{request.param}.safetensors"
    if not (folder(webui) / name).exists():
        pytest.skip(f"this host has no {name}")
    webui.set_options(sd_model_checkpoint=name)
    chosen = webui.get("/asag/blocks")
    assert webui.txt2img(**small()).status == 200
    yield name, chosen, webui.get("/asag/blocks")
    webui.set_options(sd_model_checkpoint=webui.sd15)
    webui.txt2img(**small())  # Forge loads it only now


class TestEachKind:
    def test_the_file_says_what_the_loaded_model_says(self, webui: WebUI, told: tuple[str, Any, Any]) -> None:
        name, chosen, loaded = told
        late = webui.kind in ("forge", "neo") and name != webui.sd15
        assert (chosen["checkpoint"], chosen["loaded"]) == (name, not late)
        assert {**chosen, "loaded": True, "blocks": told_of_all(chosen, loaded)} == loaded
        assert chosen["kind"] not in ("", "UNet")
        assert (loaded["chosen_checkpoint"], loaded["chosen_problem"]) == (None, None)
        assert of_the_file(folder(webui) / name) == blocks(loaded)


def told_of_all(chosen: dict[str, Any], loaded: dict[str, Any]) -> list[dict[str, Any]]:
    """The blocks as the file says them; how many heads they have it needn't say."""
    pairs = zip(chosen["blocks"], loaded["blocks"], strict=True)
    return [{**told, "each_head": told["each_head"] or known["each_head"]} for told, known in pairs]


@pytest.fixture
def sdxl(webui: WebUI) -> str:
    if webui.sdxl is None:
        pytest.skip("no SDXL checkpoint (ASAG_WEBUI_SDXL)")
    return webui.sdxl


def refused(webui: WebUI, payload: dict[str, Any]) -> str:
    """The detail of a refusal that comes before any checkpoint is loaded."""
    before = len(webui.log)
    answer = webui.txt2img(**payload)
    assert answer.status == 422, answer.body
    assert not any(words in webui.log[before:] for words in LOADS)
    return answer.body["detail"]


def test_blocks_that_a_requests_own_checkpoint_lacks(webui: WebUI, sdxl: str) -> None:
    plain = webui.txt2img(**request()).image
    payload = request(override_settings={"sd_model_checkpoint": sdxl}, alwayson_scripts=asag(blocks="mid, out.11"))
    detail = refused(webui, payload)
    assert detail.startswith(f"ASAG settings: blocks: {sdxl} lacks 'out.11'; this model has: ")
    assert blocks(webui.get("/asag/blocks"))[-1][0] == "out.11"
    assert_same(webui.txt2img(**request()).image, plain)


def test_settings_that_cannot_be_read(webui: WebUI, sdxl: str) -> None:
    payload = request(override_settings={"sd_model_checkpoint": sdxl}, alwayson_scripts=asag(scale=-1))
    assert "scale: -1; allowed" in refused(webui, payload)


def test_blocks_that_the_chosen_checkpoint_lacks(webui: WebUI, sdxl: str) -> None:
    if webui.kind not in ("forge", "neo"):
        pytest.skip("this host loads a checkpoint when it is chosen")
    with chosen(webui, sdxl):
        assert f"blocks: {sdxl} lacks 'out.11'" in refused(webui, request(alwayson_scripts=asag(blocks="out.11")))


@contextmanager
def chosen(webui: WebUI, name: str) -> Iterator[None]:
    """A checkpoint is chosen, and never loaded."""
    webui.set_options(sd_model_checkpoint=name)
    try:
        yield
    finally:
        webui.set_options(sd_model_checkpoint=webui.sd15)


@contextmanager
def written(webui: WebUI, name: str, content: bytes) -> Iterator[None]:
    path = folder(webui) / name
    path.write_bytes(content)
    try:
        webui.post("/sdapi/v1/refresh-checkpoints")
        yield
    finally:
        path.unlink()
        webui.post("/sdapi/v1/refresh-checkpoints")


def gguf(names: list[str]) -> bytes:
    """A GGUF file of version 3 without metadata: a tensor of 32 zeros for each name."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(names), 0)
    for number, name in enumerate(names):
        # One dimension of 32, float32, and where its data begins.
        head += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<IQIQ", 1, 32, 0, 128 * number)
    return head + bytes(-len(head) % 32) + bytes(128 * len(names))


FLUX = ["double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight", "single_blocks.1.linear1.weight"]


def test_gguf(webui: WebUI) -> None:
    if webui.kind not in ("forge", "neo"):
        pytest.skip("this host loads no GGUF file")
    with written(webui, "broken-or-small.gguf", gguf(FLUX)), chosen(webui, "broken-or-small.gguf"):
        told = webui.get("/asag/blocks")
        assert (told["checkpoint"], told["kind"], told["loaded"]) == ("broken-or-small.gguf", "Flux", False)
        assert blocks(told) == [("double.0", 1), ("single.0", 1), ("single.1", 1)]
        detail = refused(webui, request(alwayson_scripts=asag(blocks="mid")))
        assert "broken-or-small.gguf lacks 'mid'; this model has: double.0, single.0-1" in detail


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("broken-or-small.safetensors", b"\x08\0\0\0\0\0\0\0{", "its file is broken"),
        ("broken-or-small.gguf", b"GGUF\x03\0\0\0\xff\xff", "its file is broken"),
        ("broken-or-small.ckpt", b"PK\x03\x04", "ASAG can't read the blocks of a .ckpt file before it is loaded"),
    ],
    ids=["safetensors", "gguf", "pickle"],
)
def test_a_file_that_does_not_say_it(webui: WebUI, name: str, content: bytes, problem: str) -> None:
    if webui.kind not in ("forge", "neo"):
        pytest.skip("this host loads a checkpoint when it is chosen")
    with written(webui, name, content), chosen(webui, name):
        told = webui.get("/asag/blocks")
    assert (told["checkpoint"], told["loaded"]) == (webui.sd15, True)
    assert told["chosen_checkpoint"] == name
    assert told["chosen_problem"].startswith(problem)
    assert blocks(told) == blocks(webui.get("/asag/blocks"))
