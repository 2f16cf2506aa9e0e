"""What stands around a host's `p.sample`: the one place from which the host lets errors through."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch import Tensor

from asag.hosts.refused import Refused

logger = logging.getLogger(__name__)


class SampleWrapper:
    """Stands for `p.sample` for one call, after which `undo` takes it away. Used up, and held on to by another
    extension, it does nothing."""

    def __init__(self, p: Any, around: Callable[..., Tensor], undo: Callable[[Any], None]) -> None:
        self.p, self.around, self.undo = p, around, undo
        self.sample: Callable[..., Tensor] = p.sample
        self.before = {name: value for name, value in p.__dict__.items() if name == "sample"}
        self.used = False

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.used:
            return self.sample(*args, **kwargs)
        self.used = True
        try:
            return self.around(self.sample, *args, **kwargs)
        except Refused as error:
            if error.status_code == 422:
                # The host logs none of its own for a request of the API.
                logger.warning(error.detail)
            raise
        finally:
            self.undo(self.p)

    def __deepcopy__(self, memo: Any) -> SampleWrapper:
        """Itself, as with a function: extensions copy `p`."""
        return self
