"""The arguments of ASAG's guider for diffusers' modular pipelines: their names and defaults."""

from __future__ import annotations

from inspect import Parameter, Signature
from typing import Any

from asag.settings import options

# Settings that mean nothing here: a guider has `enabled` itself, a hires pass is a pipeline call of its own, and
# figures need the pictures.
LEFT_OUT = frozenset({"enabled", "hires", "hires_scale", "hires_blocks", "figures"})
# Arguments that are called as those of diffusers' own guiders are; the others have the settings' names.
ARGUMENTS = {
    "scale": "adversarial_guidance_scale",
    "blocks": "adversarial_guidance_blocks",
    "start": "adversarial_guidance_start",
    "end": "adversarial_guidance_stop",
    "rescale": "guidance_rescale",
} | {name: name for name in options() if name not in LEFT_OUT | {"scale", "blocks", "start", "end", "rescale"}}


def signature() -> Signature:
    """The constructor's: guidance_scale and the scale by position, the rest by name; defaults are the settings'."""
    own: dict[str, Any] = {"guidance_scale": 7.5, "use_original_formulation": False, "start": 0.0, "stop": 1.0}
    own |= {"enabled": True, "adaptive": None}
    settings = {ARGUMENTS[name]: each.default for name, (each, _) in options().items() if name in ARGUMENTS}
    defaults = own | settings
    by_position = ["guidance_scale", ARGUMENTS["scale"]]
    return Signature(
        [
            Parameter("self", Parameter.POSITIONAL_OR_KEYWORD),
            *(Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=defaults[name]) for name in by_position),
            *(
                Parameter(name, Parameter.KEYWORD_ONLY, default=default)
                for name, default in defaults.items()
                if name not in by_position
            ),
        ]
    )
