"""One denoiser step of AUTOMATIC1111: what the model was given, recorded, and given again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from asag.hosts.random_state import RandomState
from asag.perturb import slice_rows


class Step:
    """What `inner_model` was given in one denoiser step: the rows of x_out in order, over one call or several."""

    def __init__(self, denoiser: Any, scale: float, blocks: str, cond_rows: int, images: int) -> None:
        self.denoiser = denoiser
        self.inner_model: nn.Module = denoiser.inner_model
        self.scale = scale
        self.blocks = blocks
        self.cond_rows = cond_rows
        self.images = images
        self.calls: list[tuple[Tensor, Tensor, Any, RandomState]] = []
        self._hook = self.inner_model.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls.append((args[0], args[1], kwargs["cond"], RandomState(args[0].device)))

    def remove(self) -> None:
        """Stop recording."""
        self._hook.remove()

    @property
    def recorded_rows(self) -> int:
        return sum(x.shape[0] for x, *_ in self.calls)

    def predict_cond_rows(self, whole_calls: bool) -> Tensor:
        """The conditional rows once more, in the host's own batches: (cond_rows, channels, height, width).

        With `whole_calls` the model is given all rows of such a batch, as the host gave them.
        """
        out, done = [], 0
        for x, sigma, cond, random_state in self.calls:
            wanted = min(x.shape[0], self.cond_rows - done)
            if wanted <= 0:
                break
            rows = slice(0, x.shape[0] if whole_calls else wanted)
            with random_state.again():
                predicted = self.inner_model(x[rows], sigma[rows], cond=slice_rows(cond, rows, x.shape[0]))
            out.append(predicted[:wanted])
            done += wanted
        return torch.cat(out)
