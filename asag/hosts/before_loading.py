"""What is checked before the host loads the checkpoint that a request runs: loading may take minutes.

`before_process` of scripts comes before that in every host (modules/processing.py: process_images), but what it raises
is logged and swallowed. What the host asks of the request next, outside of any `try`, is the names of its own settings,
and so the refusal waits there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NoReturn

from asag.hosts.checked import check_file, passes
from asag.hosts.host import Host
from asag.hosts.refused import Refused
from asag.settings import AsagSettings, SettingsError

logger = logging.getLogger(__name__)


class RefusingSettings(dict[str, Any]):
    """Settings of a request that the host can't begin with: it is refused where it asks for their names."""

    def __init__(self, settings: dict[str, Any], refused: Refused) -> None:
        super().__init__(settings)
        self.settings, self.refused = settings, refused

    def keys(self) -> NoReturn:
        raise self.refused


def check(host: Host, p: Any, read: Callable[[], AsagSettings]) -> None:
    """Refuse the request when `read` raises SettingsError, or when the checkpoint that it is going to load lacks the
    blocks, as far as the header of its file tells."""
    if isinstance(p.override_settings, RefusingSettings):
        p.override_settings = p.override_settings.settings  # asked once more
    try:
        _check_chosen(host, p, read())
    except SettingsError as error:
        _refuse(p, Refused(str(error), 422))
    except Refused as error:
        _refuse(p, error)
    except Exception as error:
        # Nothing is lost: once it is loaded the checkpoint is looked at again.
        logger.warning("ASAG can't look into the checkpoint before it is loaded: %s: %s", type(error).__name__, error)


def _check_chosen(host: Host, p: Any, settings: AsagSettings) -> None:
    # Forge's button that upscales a picture of the gallery begins with the hires pass.
    if not settings.active or getattr(p, "txt2img_upscale", False):
        return
    _, chosen = host.checkpoints(p.override_settings.get("sd_model_checkpoint"))
    for is_hires in passes(p):
        check_file(chosen, settings, is_hires, getattr(chosen, "name", ""), host.families)


def _refuse(p: Any, refused: Refused) -> None:
    # The host logs none of its own for a request of the API.
    logger.warning(refused.detail)
    p.override_settings = RefusingSettings(p.override_settings, refused)
