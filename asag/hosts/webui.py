"""Which WebUI this is."""

from __future__ import annotations

from importlib.util import find_spec

from asag.hosts.generation import Host


def find_host() -> Host:
    """The adapter for the WebUI that runs this; all of the Forge family have a package modules_forge."""
    if find_spec("modules_forge"):
        from asag.hosts.forge import Forge

        return Forge()
    from asag.hosts.a1111 import A1111

    return A1111()
