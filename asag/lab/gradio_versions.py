"""What gradio 3.41, 4.40 and 6.31 call the same thing, for the playground."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def script_argument(load: Callable[..., Any]) -> str:
    """The name of an event's JavaScript, given gr.Blocks.load: `_js` in 3, `js` from 4 on."""
    return "js" if _takes(load, "js") else "_js"


def style_argument(mount: Callable[..., Any], css: str, of_page: bool) -> dict[str, str]:
    """The page's CSS for gr.Blocks (`of_page`) or for `mount`, which is gr.mount_gradio_app: that takes it from 6 on,
    and gr.Blocks did before."""
    return {} if _takes(mount, "css") == of_page else {"css": css}


def _takes(function: Callable[..., Any], argument: str) -> bool:
    return argument in inspect.signature(function).parameters
