"""The first line of the accordion: what ASAG stands for and where to read more."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

from asag import __version__

PAPER = "https://arxiv.org/abs/2511.07499"
ROOT = Path(__file__).parent.parent.parent
# Of an address that git knows, with a password in it or without.
GITHUB = re.compile(r"^\s*url\s*=\s*\S*github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?\s*$", re.MULTILINE)


def line(fields: dict[str, dict[str, Any]]) -> str:
    """The line as HTML. `fields` is what javascript/asag_fields.js has to know of fields, by elem_id."""
    links = [f'<a href="{PAPER}" target="_blank" rel="noopener">Paper</a>']
    if docs := docs_address(ROOT):
        links.insert(0, f'<a href="{html.escape(docs)}" target="_blank" rel="noopener">What each option does</a>')
    rules = html.escape(json.dumps(fields))
    return (
        f'<div class="asag-about" data-fields="{rules}">'
        f'<span title="Version {__version__}">Adversarial Sinkhorn Attention Guidance</span> '
        f"{' '.join(links)}</div>"
    )


def docs_address(folder: Path) -> str:
    """docs/options.md on the site that the extension in `folder` was cloned from; empty where that isn't known."""
    try:
        found = GITHUB.search((folder / ".git" / "config").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""  # unpacked from an archive
    return f"https://github.com/{found[1]}/blob/HEAD/docs/options.md" if found else ""
