"""What the script needs of a WebUI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from asag.models.base import Family
from asag.settings import AsagSettings

if TYPE_CHECKING:
    from asag.hosts.generation import GuidedRun


class Host(Protocol):
    """A WebUI, as the script needs it. `families` are those of the models that it can load."""

    @property
    def families(self) -> Sequence[Family]: ...

    def run(self, settings: AsagSettings) -> GuidedRun:
        """The guidance of a generation that begins."""

    def model(self) -> tuple[nn.Module, Family]:
        """The denoiser that is loaded now, and its family; raises Refused when it can't be perturbed."""

    def checkpoints(self, wanted: str | None = None) -> tuple[Any, Any]:
        """The host's CheckpointInfo of the model that is loaded, and of another one that the next generation runs, or
        None. `wanted` is a request's own checkpoint."""
