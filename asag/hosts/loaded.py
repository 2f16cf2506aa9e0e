"""The checkpoint that a WebUI has loaded now, and the one that is chosen in its page."""

from __future__ import annotations

from typing import Any

from modules import sd_models

from asag.hosts.refused import Refused


def loaded_model() -> Any:
    """The host's model; raises Refused when none is loaded yet.

    Not `shared.sd_model`: to ask for that loads a checkpoint in AUTOMATIC1111 and reForge (modules/sd_models.py:
    get_sd_model), which a look at the block map must not do.
    """
    model = sd_models.model_data.sd_model
    if model is None:
        raise Refused("ASAG: no model is loaded yet", 422)
    return model


def checkpoints() -> tuple[str, str | None]:
    """The file names of the checkpoint that the loaded model is of, and of another one that the host will load for the
    next generation, or None. Forge and Neo load what is chosen only then (modules_forge/main_entry.py:
    refresh_model_loading_parameters); the others may have loaded another one for a hires pass.

    Raises Refused when no model is loaded.
    """
    from modules import shared

    loaded = getattr(loaded_model(), "sd_checkpoint_info", None)
    name = getattr(loaded, "name", "")
    parameters = getattr(sd_models.model_data, "forge_loading_parameters", None)
    if parameters is None:
        chosen = sd_models.checkpoint_aliases.get(shared.opts.sd_model_checkpoint)
    else:
        chosen = parameters.get("checkpoint_info")
    other = getattr(chosen, "name", name)
    return name, other if other != name else None
