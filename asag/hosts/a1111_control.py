"""ControlNet in AUTOMATIC1111 (sd-webui-controlnet, scripts/hook.py): what its units keep, and what that means here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from asag.models.base import AttentionLayer
from asag.perturb import attribute_replaced, sparing


def fixes_rows(p: Any) -> bool:
    """Whether the model takes no other number of rows than that of its first call.

    ControlNet (used_hint_cond_latent) repeats a reference latent for the rows of the first call and keeps it: its
    reference, colorfix and inpaint_only units. Its StyleAlign option makes the rows of a batch attend to one another.
    """
    units = (unit for network in _networks(p) for unit in getattr(network, "control_params", None) or [])
    return remembers(p) or any(getattr(unit, "used_hint_cond_latent", None) is not None for unit in units)


def remembers(p: Any) -> bool:
    """Whether a reference unit, or StyleAlign, is at work: the blocks of the model keep banks of what they saw."""
    return any(getattr(network, "attn_module_list", None) for network in _networks(p))


@contextmanager
def references_spared(p: Any, layers: Sequence[AttentionLayer]) -> Iterator[None]:
    """While open, reference units show their reference to the model as it is now, even where it is perturbed later.

    They do so in each call of the model, before the picture's own pass (`original_forward`), and the picture attends
    to what was kept then. That belongs to what a prediction is conditioned on, and is the same in a weakened one.
    """
    with ExitStack() as stack:
        for network in _networks(p):
            if getattr(network, "attn_module_list", None):
                shown = sparing(layers, network.original_forward)
                stack.enter_context(attribute_replaced(network, "original_forward", shown))
        yield


def _networks(p: Any) -> list[Any]:
    scripts = p.scripts.alwayson_scripts if p.scripts else []
    return [each for each in (getattr(script, "latest_network", None) for script in scripts) if each is not None]
