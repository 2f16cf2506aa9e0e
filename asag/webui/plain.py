"""Text as text: no page reads what others wrote, a preset's name or a pasted infotext, as Markdown or HTML."""

from __future__ import annotations

import html

import gradio as gr

# From 4 on, gradio shows the message of a toast as HTML; before, as text.
TOASTS_ARE_HTML = int(gr.__version__.split(".")[0]) >= 4


def as_html(text: str) -> str:
    """The value of a gr.HTML that shows `text`."""
    return f'<p class="asag-notice">{html.escape(text)}</p>' if text else ""


def warn(text: str) -> None:
    """Show `text` over the page for some seconds. Only while gradio handles an event."""
    gr.Warning(html.escape(text) if TOASTS_ARE_HTML else text)
