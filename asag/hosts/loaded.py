"""The checkpoint that a WebUI has loaded now."""

from __future__ import annotations

from typing import Any

from modules import sd_models

from asag.hosts.generation import Refused


def loaded_model() -> Any:
    """The host's model; raises Refused when none is loaded yet.

    Not `shared.sd_model`: to ask for that loads a checkpoint in AUTOMATIC1111 and reForge (modules/sd_models.py:
    get_sd_model), which a look at the block map must not do.
    """
    model = sd_models.model_data.sd_model
    if model is None:
        raise Refused("ASAG: no model is loaded yet", 422)
    return model
