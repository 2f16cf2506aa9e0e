"""Which way the push goes, against code that nobody here wrote: Forge's own perturbed-attention guidance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from .payloads import ROUNDING, asag, largest_difference, request
from .server import WebUI

Image = Callable[..., np.ndarray]
OWN = "perturbedattentionguidance integrated"
# At 3 the push is worth two or three levels in a checkpoint of random weights.
STRONG_PAG = 30.0


@pytest.mark.parametrize("reuse", [True, False], ids=["shared", "whole"])
@pytest.mark.parametrize("cfg_scale", [1, 7])
def test_method_pag_is_the_hosts_own(webui: WebUI, plain: Image, cfg_scale: float, reuse: bool) -> None:
    """One step: later ones would multiply what rounding does."""
    found = [each["name"] for each in webui.get("/sdapi/v1/script-info") if each["name"].startswith(OWN)]
    if not found:
        pytest.skip("this host has none of its own")
    changes = {"steps": 1, "cfg_scale": cfg_scale}
    # On, scale, attenuation, and from which to which part of the steps.
    theirs = webui.txt2img(
        **request(**changes, alwayson_scripts={found[0]: {"args": [True, STRONG_PAG, 0.0, 0.0, 1.0]}})
    ).image
    settings = {"method": "pag", "blocks": "mid", "scale": STRONG_PAG, "reuse": reuse}
    ours = webui.txt2img(**request(**changes, alwayson_scripts=asag(**settings))).image
    assert largest_difference(theirs, plain(**changes)) > 5 * ROUNDING
    assert largest_difference(ours, theirs) <= ROUNDING
