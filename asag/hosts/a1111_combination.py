"""AUTOMATIC1111's combination of the rows of a step, and what is done to its result.

Source: modules/sd_samplers_cfg_denoiser.py (CFGDenoiser.forward). After the `cfg_denoised` callbacks the host copies
the unconditional rows for samplers of CFG++, combines the rows, blends an inpainting's mask in, and makes the preview.

To shift all rows by s δ would do where the combination looks at differences of rows alone. Extensions for PAG and SAG
(sd-webui-incantations: combine_denoised; sd_webui_SAG: callbacks) also look at predictions of their own: they would add
s δ once more, times their own scale. So the rows stay as they are until they are combined.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor

from asag.perturb import attribute_replaced

# The second is InstructPix2Pix's.
NAMES = ("combine_denoised", "combine_denoised_for_edit_model")


class Combination:
    """The denoiser's next combination of rows, whose result `finish` changes. Ends with it, or by `remove`."""

    def __init__(self, denoiser: Any, finish: Callable[[Tensor], Tensor]) -> None:
        self.finish = finish
        self._undo = ExitStack()
        for name in NAMES:
            self._undo.enter_context(attribute_replaced(denoiser, name, self._around(getattr(denoiser, name))))

    def remove(self) -> None:
        """Give the denoiser back what it had; harmless a second time."""
        self._undo.close()

    def _around(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def combined(*args: Any, **kwargs: Any) -> Tensor:
            self.remove()
            return self.finish(original(*args, **kwargs))

        return combined
