"""Muon (Jordan et al. 2024): momentum made orthogonal for matrices, AdamW for the rest.

On few steps it gets further than AdamW alone, and on a CPU few steps are what there is. Its updates are as large as
AdamW's (Liu et al. 2025, Muon is scalable for LLM training), so that one learning rate serves both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

_MOMENTUM = 0.95
_ADAM_BETAS = (0.9, 0.99)
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration in Jordan's text
_ITERATIONS = 5
_ADAM_SIZE = 0.2  # root mean square of AdamW's updates, as Liu et al. measured it


class Muon(torch.optim.Optimizer):
    """`matrices` have two dimensions or more, of which all but the first are taken together; `others` get AdamW."""

    def __init__(self, matrices: Iterable[torch.nn.Parameter], others: Iterable[torch.nn.Parameter]) -> None:
        groups: list[dict[str, Any]] = [{"params": list(matrices)}, {"params": list(others)}]
        super().__init__(groups, {"lr": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step with each group's lr, for gradients that are there already; `closure` is not called."""
        matrices, others = self.param_groups
        by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
        for parameter in matrices["params"]:
            by_shape.setdefault(parameter.shape, []).append(parameter)
        for parameters in by_shape.values():
            self._step_matrices(parameters, matrices["lr"])
        for parameter in others["params"]:
            self._step_adam(parameter, others["lr"])

    def _step_matrices(self, parameters: list[torch.nn.Parameter], rate: float) -> None:
        """Those of one shape together, which on a GPU takes the time of one."""
        ahead = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            gradient = _gradient(parameter)
            momentum = state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
            ahead.append(gradient.lerp(momentum, _MOMENTUM).flatten(1))
        updates = orthogonal(torch.stack(ahead))
        size = _ADAM_SIZE * max(updates.shape[1:]) ** 0.5
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.sub_(update.view_as(parameter), alpha=rate * size)

    def _step_adam(self, parameter: torch.nn.Parameter, rate: float) -> None:
        state = self.state[parameter]
        if not state:
            state |= {"count": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
        state["count"] += 1
        gradient = _gradient(parameter)
        mean = state["mean"].lerp_(gradient, 1 - _ADAM_BETAS[0])
        square = state["square"].lerp_(gradient**2, 1 - _ADAM_BETAS[1])
        unbiased = [1 - beta ** state["count"] for beta in _ADAM_BETAS]
        parameter.addcdiv_(mean, (square / unbiased[1]).sqrt_().add_(1e-8), value=-rate / unbiased[0])


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    """Zeros where this step didn't reach a parameter."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices (B,m,n) with the same singular vectors and singular values near 1, in their own dtype."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    wide: torch.Tensor = (matrices.mT if tall else matrices).bfloat16()
    wide = wide / (wide.float().norm(dim=(1, 2), keepdim=True) + 1e-7).bfloat16()
    for _ in range(_ITERATIONS):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return (wide.mT if tall else wide).to(matrices.dtype)
