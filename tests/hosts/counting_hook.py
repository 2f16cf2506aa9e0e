"""The double of an extension that counts: NegPiP's hook (scripts/negpip.py: hook_forward, counter), in short.

It adds text of its own to the conditional rows' cross-attention. Two rows for each image are a pair of halves; of any
other number of rows it takes the first passes for conditional ones and the second for unconditional, by counting.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

count = 0
positive = True


def counter(limit: int) -> bool:
    """Whether this attention call is one of a conditional pass; NegPiP keeps the count in its module, too."""
    global count, positive
    was, count = positive, count + 1
    if count == limit:
        count, positive = 0, not positive
    return was


class CountingHook:
    """Hooks into every cross-attention of a UNet; `cond_first`: the order of the two halves."""

    def __init__(self, unet: nn.Module, images: int, text: Tensor, cond_first: bool) -> None:
        self.layers = [module for name, module in unet.named_modules() if name.endswith("attn2")]
        self.images, self.text, self.cond_first = images, text, cond_first
        self.calls = 0
        for layer in self.layers:
            layer.forward = self.hooked(layer.forward)

    def begin_step(self) -> None:
        """As NegPiP does in the host's `cfg_denoiser` callback."""
        global count, positive
        count, positive = 0, True

    def remove(self) -> None:
        for layer in self.layers:
            del layer.forward

    def state(self) -> tuple[int, bool, int]:
        return count, positive, self.calls

    def hooked(self, original: Any) -> Any:
        def forward(x: Tensor, context: Tensor) -> Tensor:
            self.calls += 1
            if x.shape[0] == 2 * self.images:
                halves = zip(x.chunk(2), context.chunk(2), (self.cond_first, not self.cond_first), strict=True)
                return torch.cat([original(rows, self.more(text) if cond else text) for rows, text, cond in halves])
            return original(x, self.more(context) if counter(len(self.layers)) else context)

        return forward

    def more(self, context: Tensor) -> Tensor:
        return torch.cat([context, self.text.expand(context.shape[0], -1, -1)], dim=1)
