"""Which WebUI this is, and how it was started."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

from asag.hosts.host import Host

KNOWN = "AUTOMATIC1111 1.10, Forge, reForge and Forge Neo"


class UnknownWebUI(RuntimeError):
    """ASAG has no adapter for the WebUI that runs it."""


def find_host() -> Host:
    """The adapter for the WebUI that runs this.

    All of the Forge family have a package modules_forge, and a package for their models: backend in Forge and Neo,
    ldm_patched in reForge. AUTOMATIC1111 is known by the modules that its adapter imports.

    Raises UnknownWebUI, which names those it knows.
    """
    if find_spec("modules_forge"):
        if not find_spec("backend") and not find_spec("ldm_patched"):
            raise UnknownWebUI(_unknown("it has modules_forge, but neither backend nor ldm_patched"))
        from asag.hosts.forge import Forge

        return Forge()
    try:
        from asag.hosts.a1111 import A1111
    except ImportError as error:
        raise UnknownWebUI(_unknown(str(error))) from error
    return A1111()


def _unknown(reason: str) -> str:
    return f"ASAG doesn't know this WebUI ({reason}); it knows {KNOWN}"


def log_warnings() -> None:
    """Have the host's log show ASAG's warnings. Forge Neo drops all that are no errors (modules/logging_config.py)."""
    logging.getLogger("asag").setLevel(logging.WARNING)


def asks_for_password() -> bool:
    """Whether the host's API asks for a name and a password (--api-auth)."""
    from modules.shared_cmd_options import cmd_opts

    return bool(cmd_opts.api_auth)


def ui_config() -> Path:
    """The file in which the host keeps the start values of its page's components (--ui-config-file)."""
    from modules.shared_cmd_options import cmd_opts

    return Path(cmd_opts.ui_config_file)
