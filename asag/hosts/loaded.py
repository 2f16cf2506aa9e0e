"""The checkpoint that a WebUI has loaded now, and the one that the next generation runs."""

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


def checkpoints(wanted: str | None = None) -> tuple[Any, Any]:
    """The host's CheckpointInfo of the model that is loaded, and of another one that the next generation runs; each
    None when there is none. `wanted` is a request's own checkpoint, which holds if the host knows one of that name
    (modules/processing.py: process_images).

    Forge and Neo load what is chosen only when they generate (modules_forge/main_entry.py:
    refresh_model_loading_parameters); the others may have loaded another one for a hires pass.
    """
    from modules import shared

    loaded = getattr(sd_models.model_data.sd_model, "sd_checkpoint_info", None)
    parameters = getattr(sd_models.model_data, "forge_loading_parameters", None)
    if wanted is not None and wanted in sd_models.checkpoint_aliases:
        chosen = sd_models.checkpoint_aliases[wanted]
    elif parameters is None:
        chosen = sd_models.checkpoint_aliases.get(shared.opts.sd_model_checkpoint)
    else:
        chosen = parameters.get("checkpoint_info")
    same = chosen is None or getattr(loaded, "name", None) == chosen.name
    return loaded, None if same else chosen
