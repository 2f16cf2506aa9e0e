"""Whatever goes wrong inside a guided run, the request says so and the model is left as it was."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from .payloads import asag, assert_same, request
from .server import WebUI

Image = Callable[..., np.ndarray]
pytestmark = pytest.mark.logs_errors
# What fails once, fails for good here: with prefix reuse the step would be made again (test_reuse.py).
WHOLE = {"reuse": False}


@pytest.mark.parametrize(("where", "call"), [("unet", 1), ("unet", 2), ("unet", 3), ("perturbed", 1), ("perturbed", 3)])
def test_failure_in_a_guided_run(webui: WebUI, plain: Image, guided: Image, where: str, call: int) -> None:
    before, unguided = guided(WHOLE), plain()
    clean = webui.fingerprint()
    webui.inject_failure(where, call)
    # The probe's own hook shows that the fingerprint, which every test relies on, does see what is put on a module.
    assert webui.fingerprint() != clean
    answer = webui.txt2img(**request(alwayson_scripts=asag(**WHOLE)))
    assert answer.status == 500
    assert "the failure that was asked for" in str(answer.body)
    assert webui.fingerprint() == clean
    assert_same(webui.txt2img(**request()).image, unguided)
    assert_same(guided(WHOLE), before)


@pytest.mark.parametrize("kind", ["OutOfMemoryError", "MemoryError"])
@pytest.mark.parametrize("where", ["unet", "perturbed"])
def test_out_of_memory(webui: WebUI, plain: Image, guided: Image, where: str, kind: str) -> None:
    before, unguided, clean = guided(WHOLE), plain(), webui.fingerprint()
    webui.inject_failure(where, kind=kind)
    answer = webui.txt2img(**request(alwayson_scripts=asag(**WHOLE)))
    assert answer.status == 500
    sentence = f"asag_probe: the failure that was asked for ({where}, call 1)"
    if where == "unet":  # the host's own pass: what it says of that is its own affair
        # A1111 calls it errors, Forge message.
        assert answer.body["error"] == kind
        assert sentence in (answer.body.get("errors"), answer.body.get("message"))
    else:
        assert answer.body["detail"] == f"ASAG: the weakened prediction failed: {kind}: {sentence}"
    assert webui.fingerprint() == clean
    assert_same(webui.txt2img(**request()).image, unguided)
    assert_same(guided(WHOLE), before)


def test_failure_in_an_unguided_run(webui: WebUI, plain: Image, guided: Image) -> None:
    before, unguided = guided(), plain()
    webui.inject_failure("unet", 2)
    assert webui.txt2img(**request()).status == 500
    assert_same(guided(), before)
    assert_same(webui.txt2img(**request()).image, unguided)
