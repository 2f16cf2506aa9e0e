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
        groups: list[dict[str, Any]] = [{"params": list(matrices)}, {"params": list(others), "count": 0}]
        super().__init__(groups, {"lr": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step with each group's lr, for gradients that are there already; `closure` is not called."""
        matrices, others = self.param_groups
        by_shape: dict[torch.Size, list[torch.Tensor]] = {}
        for parameter in matrices["params"]:
            by_shape.setdefault(parameter.shape, []).append(parameter)
        for parameters in by_shape.values():
            self._step_matrices(parameters, matrices["lr"])
        if others["params"]:
            self._step_adam(others["params"], others["lr"])

    def _step_matrices(self, parameters: list[torch.Tensor], rate: float) -> None:
        """Those of one shape together, which on a GPU takes the time of one."""
        gradients = _gradients(parameters)
        momenta = self._states("momentum", parameters)
        torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, _MOMENTUM)
        updates = orthogonal(torch.stack([each.flatten(1) for each in ahead]))
        size = _ADAM_SIZE * max(updates.shape[1:]) ** 0.5
        moves = [update.view_as(parameter) for parameter, update in zip(parameters, updates, strict=True)]
        torch._foreach_add_(parameters, moves, alpha=-rate * size)

    def _step_adam(self, parameters: list[torch.Tensor], rate: float) -> None:
        gradients = _gradients(parameters)
        means, squares = self._states("mean", parameters), self._states("square", parameters)
        torch._foreach_lerp_(means, gradients, 1 - _ADAM_BETAS[0])
        torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1 - _ADAM_BETAS[1])
        count = self.param_groups[1]["count"] = self.param_groups[1]["count"] + 1
        unbiased = [1 - beta**count for beta in _ADAM_BETAS]
        scales = torch._foreach_sqrt(torch._foreach_div(squares, unbiased[1]))
        torch._foreach_add_(scales, 1e-8)
        torch._foreach_addcdiv_(parameters, means, scales, value=-rate / unbiased[0])

    def _states(self, name: str, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
        """What is kept of each parameter by this name, zeros at first."""
        for parameter in parameters:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter)
        return [self.state[parameter][name] for parameter in parameters]


def _gradients(parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    """Zeros where this step didn't reach a parameter."""
    return [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]


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
