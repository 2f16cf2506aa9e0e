"""Which WebUI this is, and how it was started."""

from __future__ import annotations

import logging
from importlib.util import find_spec

from asag.hosts.generation import Host


def find_host() -> Host:
    """The adapter for the WebUI that runs this; all of the Forge family have a package modules_forge."""
    if find_spec("modules_forge"):
        from asag.hosts.forge import Forge

        return Forge()
    from asag.hosts.a1111 import A1111

    return A1111()


def log_warnings() -> None:
    """Have the host's log show ASAG's warnings. Forge Neo drops all that are no errors (modules/logging_config.py)."""
    logging.getLogger("asag").setLevel(logging.WARNING)


def asks_for_password() -> bool:
    """Whether the host's API asks for a name and a password (--api-auth)."""
    from modules.shared_cmd_options import cmd_opts

    return bool(cmd_opts.api_auth)
