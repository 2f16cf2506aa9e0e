"""The Triton kernels, interpreted, against float64: run by tests/test_kernels.py in a process of its own.

Triton reads TRITON_INTERPRET when it is imported. Prints each case's relative error as a line of JSON; without cases,
`TRITON_INTERPRET=1 python -m tests.interpreted_kernels`, a table.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor

from asag import kernel_launch, kernel_path
from asag.attention import adversarial_sinkhorn_attention
from asag.sinkhorn import DenseScores

BATCH, HEADS = 2, 2
# Axes in memory, of (batch, heads, tokens, width): as hosts split heads, as they come, and with tokens innermost.
LAYOUTS = {"hosts": (0, 2, 1, 3), "contiguous": (0, 1, 2, 3), "transposed": (0, 1, 3, 2)}


class Case:
    """The tensors of a case, and what is asked of them."""

    def __init__(self, given: dict[str, Any], generator: torch.Generator) -> None:
        self.text_before, self.text_after = given.get("text", (0, 0))
        self.mask, self.normalize = given.get("mask", ""), given.get("normalize", "rows")
        self.iterations, self.stops = given.get("iterations", 2), given.get("stops", False)
        self.tiling = kernel_launch.HOPPER if given.get("hopper") else kernel_launch.USUAL
        self.dtype, self.layout, self.generator = (
            getattr(torch, given["dtype"]),
            given.get("layout", "hosts"),
            generator,
        )
        width, n, m = given["width"], given["n"], given.get("m", given["n"])
        text, deviation = self.text_before + self.text_after, math.sqrt(given.get("gain", 2.0))
        self.query, self.key = self.heads(n + text, width, deviation), self.heads(m + text, width, deviation)
        self.value = self.heads(m + text, given.get("value_width", width), 1.0)
        self.image = slice(self.text_before, self.text_before + m)
        self.scale = -1 / math.sqrt(width)

    def heads(self, tokens: int, width: int, deviation: float) -> Tensor:
        axes = LAYOUTS[self.layout]
        shape = (BATCH, HEADS, tokens, width)
        made = torch.randn([shape[axis] for axis in axes], generator=self.generator) * deviation
        # These exchanges of axes are their own inverses.
        return made.to(self.dtype).permute(axes)

    def tolerance(self) -> float | None:
        """One at which about half of the heads stop after the second iteration."""
        if not self.stops:
            return None
        scores = DenseScores(self.query.double().flatten(0, 1), self.key.double().flatten(0, 1), self.scale)
        first = scores.sweep(scores.start())
        steps = (scores.sweep(first) - first).abs().mean(dim=-1).sort().values
        assert float(first.abs().mean(dim=-1).min()) > float(steps[2])
        return float(steps[1:3].mean())

    def text_bias(self) -> Tensor | None:
        """Of image queries: a row for all, with a hidden text token, or one for each."""
        if not self.mask:
            return None
        rows = 1 if self.mask == "a row" else self.query.shape[2] - self.text_before - self.text_after
        bias = torch.randn(BATCH, 1, rows, self.text_before + self.text_after, generator=self.generator)
        bias[..., 0] = -math.inf
        return bias.to(self.dtype)

    def error(self) -> float:
        joint = self.text_before + self.text_after > 0
        with mock.patch.object(kernel_launch, "tiling_of", return_value=self.tiling):
            found, expected = self.joint() if joint else self.plain()
        assert found.dtype == self.dtype
        assert found.shape == expected.shape
        return float((found.double() - expected).norm() / expected.norm())

    def plain(self) -> tuple[Tensor, Tensor]:
        given, tolerance = (self.query, self.key, self.value), self.tolerance()
        found = kernel_path.plain(kernel_launch, *given, self.scale, self.iterations, tolerance, self.normalize)
        return found, sinkhorn(*given, self.iterations, tolerance, self.normalize)

    def joint(self) -> tuple[Tensor, Tensor]:
        text_bias, out = self.text_bias(), torch.full_like(self.query, math.nan)[..., : self.value.shape[3]]
        rows = self.query[:, :, self.image].shape[2]
        expanded = None if text_bias is None else text_bias.expand(BATCH, HEADS, rows, -1)
        options = (self.scale, self.iterations, None)
        kernel_path.joint(kernel_launch, self.query, self.key, self.value, self.image, expanded, *options, out)
        query, key, value = (each.double() for each in (self.query[:, :, self.image], self.key, self.value))
        is_text = torch.ones(key.shape[2], dtype=torch.bool)
        is_text[self.image] = False
        logits = query @ key.transpose(-1, -2) * -self.scale
        if text_bias is not None:
            logits[..., is_text] += text_bias.double()
        weights = torch.softmax(logits, dim=-1)
        spread = sinkhorn(query, key[:, :, self.image], value[:, :, self.image], self.iterations, None, "rows")
        text = weights[..., is_text] @ value[:, :, is_text]
        return out[:, :, self.image], text + weights[..., ~is_text].sum(dim=-1, keepdim=True) * spread


def sinkhorn(
    query: Tensor, key: Tensor, value: Tensor, iterations: int, tolerance: float | None, normalize: str
) -> Tensor:
    given = (each.double() for each in (query, key, value))
    return adversarial_sinkhorn_attention(
        *given, iterations=iterations, tolerance=tolerance, normalize=normalize, impl="dense"
    )


def table() -> None:
    """Errors by dtype, head dimension and standard deviation of the logits, plain and joint."""
    generator = torch.Generator().manual_seed(0)
    print(f"Relative errors of the kernels, interpreted by Triton {triton.__version__}, against float64")
    print(f"{'dtype':10}{'head_dim':>9}{'logits':>8}{'plain':>10}{'joint':>10}")
    for dtype in ("float16", "bfloat16", "float32"):
        for width in (40, 64, 80, 128, 160):
            for deviation in (2, 8, 30):
                given = {"dtype": dtype, "width": width, "n": 70, "gain": deviation}
                errors = [Case(given | more, generator).error() for more in ({"m": 131}, {"text": (5, 28)})]
                print(f"{dtype:10}{width:9}{deviation:8}{errors[0]:10.1e}{errors[1]:10.1e}", flush=True)


def main() -> None:
    if not sys.argv[1:]:
        table()
        return
    generator = torch.Generator().manual_seed(0)
    for case in json.loads(sys.argv[1]):
        print(json.dumps(Case(case, generator).error()), flush=True)


if __name__ == "__main__":
    main()
