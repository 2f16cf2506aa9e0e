"""Every attention optimisation of A1111 that runs on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from .payloads import request as small
from .server import WebUI

Image = Callable[..., np.ndarray]
# As the settings page spells them, with what the log says of each.
TITLES = {
    "sdp - scaled dot product": "sdp",
    "sdp-no-mem - scaled dot product without memory efficient attention": "sdp-no-mem",
    "sub-quadratic": "sub-quadratic",
    "V1 - original v1": "V1",
    "InvokeAI": "InvokeAI",
    "Doggettx": "Doggettx",
    "None": None,
}


@pytest.fixture(scope="module", params=TITLES, autouse=True)
def title(request: pytest.FixtureRequest, webui: WebUI) -> Iterator[str]:
    """Switches the host; by its settings, as overrides in a request don't reach the model."""
    if webui.kind != "a1111":
        pytest.skip("only A1111 lets a setting choose the attention")
    before = webui.get("/sdapi/v1/options")["cross_attention_optimization"]
    webui.set_options(cross_attention_optimization=request.param)
    webui.txt2img(**small(steps=1))
    yield request.param
    webui.set_options(cross_attention_optimization=before)


def test_optimization(webui: WebUI, guidance_works: Image, title: str) -> None:
    name = TITLES[title]
    line = f"Applying attention optimization: {name}..." if name else "Disabling attention optimization"
    assert [each for each in webui.log.splitlines() if "attention optimization" in each][-1].startswith(line)
    guidance_works(small(steps=2))
