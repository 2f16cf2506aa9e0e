"""The workers of sd-webui-distributed, in its file of settings, which it reads anew for each request.

The environment says which one: ASAG_WEBUI_WORKER is the address of a second WebUI that runs already, with ASAG and with
the same checkpoint, such as http://127.0.0.1:7861.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ADDRESS = os.environ.get("ASAG_WEBUI_WORKER")
FILE = "distributed-config.json"
# The extension measures how fast a machine is that has no speed yet; and it shares evenly among equally fast ones.
SPEED = {"avg_ipm": 60.0, "eta_percent_error": []}
IDLE, DISABLED = 1, 5


def flags(webui: Path, scratch: Path) -> list[str]:
    """The command line that has the extension use a file of settings of the tests' own; empty without extension or
    worker."""
    installed = any(webui.glob("extensions/*/scripts/spartan/world.py"))
    if not ADDRESS or not installed:
        return []
    benchmark: dict[str, Any] = {}
    master = {"master": {"master": True, **SPEED}}
    settings = {"workers": [master], "benchmark_payload": benchmark, "complement_production": False}
    (scratch / FILE).write_text(json.dumps(settings))
    use(scratch, "asked")
    return ["--distributed-config", str(scratch / FILE)]


def use(scratch: Path, label: str, address: str | None = ADDRESS) -> None:
    """Have the next request shared with the worker at `address`, and with none that was there before.

    The extension asks a worker for its scripts only when the WebUI starts: to one with a new label it sends no
    settings of theirs.
    """
    settings = json.loads((scratch / FILE).read_text())
    workers = {name: fields for each in settings["workers"] for name, fields in each.items()}
    for name, fields in workers.items():
        fields.update(SPEED, state=IDLE if name == "master" else DISABLED)
    parts = urlsplit(address)
    workers[label] = {"address": parts.hostname, "port": parts.port, "state": IDLE, **SPEED}
    settings["workers"] = [{name: fields} for name, fields in workers.items()]
    (scratch / FILE).write_text(json.dumps(settings))
