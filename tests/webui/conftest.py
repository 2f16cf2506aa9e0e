"""Starts the WebUI named by ASAG_WEBUI for the session; without that variable all tests here skip."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from . import workers
from .payloads import FAINT, REUSE_ROUNDING, ROUNDING, asag, assert_differ, assert_same, largest_difference, request
from .server import REPOSITORY, WebUI, extension_link, linked, tracebacks_naming

PROBE = Path(__file__).parent / "probe"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "logs_errors: the test provokes errors that the host logs with a traceback")


# Hundreds of tests: without a WebUI they aren't collected, and tests/conftest.py says so in one line.
collect_ignore_glob = [] if os.environ.get("ASAG_WEBUI") else ["test_*.py"]


@pytest.fixture(scope="session")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """The server, with this repository and the tests' probe among its extensions."""
    if not os.environ.get("ASAG_WEBUI"):
        pytest.skip("ASAG_WEBUI isn't set: it names the folder of an installed WebUI to test in")
    folder = Path(os.environ["ASAG_WEBUI"]).expanduser().resolve()
    if not (folder / "launch.py").exists():
        pytest.fail(f"ASAG_WEBUI: {folder} has no launch.py")
    with ExitStack() as stack:
        stack.enter_context(linked(REPOSITORY, extension_link(folder)))
        # A name of its own, so that one session's end doesn't take the probe from another that is starting.
        stack.enter_context(linked(PROBE, folder / "extensions" / f"asag-probe-{os.getpid()}"))
        scratch = tmp_path_factory.mktemp("webui")
        server = stack.enter_context(WebUI(folder, scratch, flags=workers.flags(folder, scratch)).running())
        # The first image loads the model and makes the host set what it sets once (networks, hijacks).
        assert server.txt2img(**request()).image.std() > 5, "the plain image is empty: wrong checkpoint?"
        yield server


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, webui: WebUI) -> Iterator[None]:
    """After every test the model's modules are as before it, and the host logged no error of the extension's."""
    before, log_length = webui.fingerprint(), len(webui.log)
    yield
    after = webui.fingerprint()
    changed = {
        name: (before.get(name), after.get(name)) for name in before | after if before.get(name) != after.get(name)
    }
    assert not changed, dict(list(changed.items())[:3])
    if not request.node.get_closest_marker("logs_errors"):
        assert not tracebacks_naming("asag", webui.log[log_length:])


@pytest.fixture(scope="session")
def plain(webui: WebUI) -> Callable[..., np.ndarray]:
    """`plain(**changes)`: the image of a txt2img request that doesn't mention ASAG. Each request is made once."""
    known: dict[str, np.ndarray] = {}

    def image(**changes: Any) -> np.ndarray:
        key = repr(sorted(changes.items()))
        if key not in known:
            known[key] = webui.txt2img(**request(**changes)).image
        return known[key]

    return image


@pytest.fixture(scope="session")
def guided(webui: WebUI) -> Callable[..., np.ndarray]:
    """`guided(settings, **changes)`: the image of the same request, guided."""

    def image(settings: dict[str, Any] | None = None, **changes: Any) -> np.ndarray:
        return webui.txt2img(**request(alwayson_scripts=asag(**(settings or {})), **changes)).image

    return image


@pytest.fixture(scope="session")
def guidance_works(webui: WebUI) -> Callable[..., np.ndarray]:
    """`guidance_works(payload, **settings)`: what must hold for whatever is asked of the host.

    Guidance changes the image, and nothing but guidance does: with a faint scale it is the unguided one, and the
    unguided request afterwards gives the same bits as the one before. A whole extra pass gives the image that prefix
    reuse gives. Returns the guided image.
    """

    def check(
        payload: dict[str, Any], rounding: int = ROUNDING, reuse_rounding: int = REUSE_ROUNDING, **settings: Any
    ) -> np.ndarray:
        ask = webui.img2img if "init_images" in payload else webui.txt2img
        others = payload.get("alwayson_scripts", {})

        def image(**changes: Any) -> np.ndarray:
            return ask(**{**payload, "alwayson_scripts": {**others, **asag(**{**settings, **changes})}}).image

        alone = ask(**payload)
        if alone.status != 200:
            pytest.skip(f"the host by itself fails at this request: {alone.body}")
        # The first of equal img2img requests may give another image than those after it, without ASAG as well.
        before = ask(**payload).image if "init_images" in payload else alone.image
        strong, told = image(), webui.last_reuse()
        faint, after = image(scale=FAINT), ask(**payload).image
        assert_differ(strong, before)
        assert largest_difference(faint, before) < rounding
        assert_same(after, before)
        assert largest_difference(image(reuse=False), strong) <= max(rounding, reuse_rounding)
        # Whatever these tests have beside it is known to keep nothing between calls of the model.
        assert "may count" not in told["why"]
        return strong

    return check
