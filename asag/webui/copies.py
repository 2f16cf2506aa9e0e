"""A second copy of the extension beside the first, such as a clone beside the installed one.

Both copies import a package called asag, and Python gives both the one that was loaded first. Two scripts that arm the
same generation would disarm each other, so the second does nothing but say that it is there.
"""

from __future__ import annotations

import html
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from modules import scripts
from modules.ui_components import InputAccordion

import asag
from asag.hosts import generation
from asag.hosts.refused import Refused

logger = logging.getLogger(__name__)


def first_copy(script: str) -> Path | None:
    """The folder of the copy that was loaded before the one that the file `script` is of; None: that one is the first.

    Links aren't followed: two links to one folder are two copies.
    """
    loaded, own = _folder(asag.__file__), _folder(script)
    return None if os.path.normcase(loaded) == os.path.normcase(own) else loaded


def second_copy(first: Path, script: str) -> type[scripts.Script]:
    """The script of a second copy, which says in the log and in the page that the first works and this one doesn't, and
    ends the requests in which it is switched on."""
    message = (
        f"ASAG is installed twice. The copy in {first} works; the copy in {_folder(script)} does nothing. Remove or "
        "disable one of them, and restart the WebUI."
    )
    logger.error(message)

    class SecondCopy(scripts.Script):
        def title(self) -> str:
            return "ASAG (second copy)"

        def show(self, is_img2img: bool) -> Any:
            return scripts.AlwaysVisible

        def ui(self, is_img2img: bool) -> list[Any]:
            label = "ASAG: a second copy of the extension, which does nothing"
            with InputAccordion(False, label=label, elem_id=self.elem_id("enabled")) as enabled:
                gr.HTML(f"<p>{html.escape(message)}</p>")
            return [enabled]

        def process_batch(self, p: Any, switch: Any = False, *args: Any, **kwargs: Any) -> None:
            if switch.get("enabled") if isinstance(switch, Mapping) else switch:
                generation.refuse(p, Refused(message, 422))

    return SecondCopy


def _folder(file: str) -> Path:
    """The extension's folder, of a file in one of its folders."""
    return Path(os.path.abspath(file)).parents[1]
