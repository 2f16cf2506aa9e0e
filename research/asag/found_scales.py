"""What was found so far and plans are made of: scales and settings, in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from asag.lab import papers
from research.lines import lock, replace_text


class Scales:
    """Scales found by `calibrate` (of equal perturbation norm) and `search` (each method's best), by model,
    condition, protocol and method, and the settings that did best in the searches, under the protocol "chosen"; a
    JSON file, which several processes may add to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found = self._read()

    def _read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def get(self, model: str, condition: str, protocol: str) -> dict[str, Any]:
        """By method (by setting, for "chosen"); those that haven't been found yet are missing."""
        if protocol == "paper":
            return dict(papers.SCALES)
        found: dict[str, Any] = self.found.get(model, {}).get(condition, {}).get(protocol, {})
        return found

    def put(self, model: str, condition: str, protocol: str, scales: dict[str, Any]) -> None:
        with lock(self.path):
            self.found = self._read()
            self.found.setdefault(model, {}).setdefault(condition, {})[protocol] = scales
            replace_text(self.path, json.dumps(self.found, indent=2) + "\n")


def three_digits(scale: float) -> float:
    """To three digits, as scales are found and written."""
    return float(f"{scale:.3g}")
