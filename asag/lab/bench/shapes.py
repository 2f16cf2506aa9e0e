"""The shapes of real models: self-attention of one layer, and a guided step."""

from __future__ import annotations

from dataclasses import dataclass

SEVERAL = 4


@dataclass(frozen=True)
class OperatorCase:
    """Self-attention as a model has it; with text tokens, joint attention in which the image comes first."""

    name: str
    heads: int
    grid: tuple[int, int]
    head_dim: int
    text: int = 0

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class StepCase:
    """`height` and `width` are those of the latent image; `batch` images."""

    family: str
    height: int
    width: int
    batch: int = 1
    blocks: str = "mid"

    @property
    def name(self) -> str:
        several = f"-batch{self.batch}" if self.batch > 1 else ""
        return f"{self.family}-{self.height}x{self.width}-{self.blocks}{several}"


OPERATORS = (
    OperatorCase("sd15-mid-512", 8, (8, 8), 160),
    OperatorCase("sd15-out.9-512", 8, (64, 64), 40),
    OperatorCase("sdxl-mid-1024", 20, (32, 32), 64),
    OperatorCase("sdxl-mid-832x1216", 20, (38, 26), 64),
    OperatorCase("sdxl-out.3-1024", 10, (64, 64), 64),
    OperatorCase("sd3-joint-1024", 24, (64, 64), 64, text=154),
    OperatorCase("flux-double-1024", 24, (64, 64), 128, text=512),
)
QUICK_OPERATORS = (
    OperatorCase("quick", 2, (8, 8), 40),
    OperatorCase("quick-joint", 2, (8, 8), 16, text=8),
)
STEPS = (
    StepCase("sd15", 64, 64),
    StepCase("sd15", 64, 64, batch=SEVERAL),
    StepCase("sd15", 64, 64, blocks="late"),
    StepCase("sd15", 64, 64, blocks="all"),
    StepCase("sdxl", 128, 128),
    StepCase("sdxl", 152, 104),
    StepCase("sdxl", 128, 128, batch=SEVERAL),
    StepCase("sdxl", 128, 128, blocks="late"),
    StepCase("sdxl", 128, 128, blocks="all"),
    StepCase("sd3", 128, 128, blocks="joint.12"),
    StepCase("flux", 128, 128, blocks="single.9"),
)
QUICK_STEPS = (
    StepCase("sd15", 16, 16),
    StepCase("sdxl", 8, 8),
    StepCase("sd3", 8, 8, blocks="joint.12"),
    StepCase("flux", 8, 8, blocks="single.0"),
)


def operators(quick: bool) -> tuple[OperatorCase, ...]:
    return QUICK_OPERATORS if quick else OPERATORS


def steps(quick: bool) -> tuple[StepCase, ...]:
    return QUICK_STEPS if quick else STEPS
