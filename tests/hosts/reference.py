"""ASAG written down once more from the paper, for the tests of adapters: dense, in float64, with no code of asag.

A step's result is ε_cfg + s (ε_c − ε̃_c), where ε̃_c comes from the same UNet, whose chosen self-attention layers have
the map of Algorithm 1. All of it is in noise; what is spoken of as a picture is x₀ = (x − √(1−ᾱ) ε) / √ᾱ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from ldm.modules.diffusionmodules import openaimodel
from torch import Tensor, nn

from tests.models.test_ldm_unet import build
from tests.test_operators import official_blur

LAYOUT = {"num_heads": 4, "channel_mult": [1], "attention_resolutions": [1], "num_res_blocks": 1}
# The UNet's own names of the layers that these addresses mean.
LAYERS = {
    "mid": "middle_block.1.transformer_blocks.0.attn1",
    "in.1": "input_blocks.1.1.transformer_blocks.0.attn1",
    "out.0": "output_blocks.0.1.transformer_blocks.0.attn1",
}
ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, dim=0)


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def real_unet() -> nn.Module:
    """stable-diffusion-sdkit's UNet, narrow, with random weights, in float64; the package itself computes in float32
    wherever it can, which is taken out here."""
    unet = build(LAYOUT).double()
    unet.dtype = torch.float64
    unet.time_embed = nn.Sequential(Double(), *unet.time_embed)
    for module in unet.modules():
        if isinstance(module, openaimodel.normalization(32).__class__):
            module.__class__ = nn.GroupNorm
    return unet


def sinkhorn_map(query: Tensor, key: Tensor, iterations: int = 2) -> Tensor:
    """Algorithm 1 with M = QKᵀ and λ = 1/√d, times the number of queries, its rows scaled once more to a sum of 1."""
    kernel = torch.exp(-query @ key.mT / math.sqrt(query.shape[-1]))
    column = torch.ones_like(kernel[..., :1, :])
    for _ in range(iterations):
        row = 1 / (kernel.shape[-2] * (kernel * column).sum(dim=-1, keepdim=True))
        column = 1 / (kernel.shape[-1] * (kernel * row).sum(dim=-2, keepdim=True))
    unscaled = kernel * column
    return unscaled / unscaled.sum(dim=-1, keepdim=True)


def identity_map(query: Tensor, key: Tensor) -> Tensor:
    """Perturbed-attention guidance's: each token attends to itself."""
    return torch.eye(query.shape[-2], dtype=query.dtype)


def blurred_map(query: Tensor, key: Tensor) -> Tensor:
    """Smoothed energy guidance's, of queries blurred over FIRST's grid (tests.hosts.guided) with a sigma of 0.4."""
    return torch.softmax(official_blur(query, 4, 6, 0.4) @ key.mT / math.sqrt(query.shape[-1]), dim=-1)


def softmax_map(query: Tensor, key: Tensor) -> Tensor:
    """The layers' own."""
    return torch.softmax(query @ key.mT / math.sqrt(query.shape[-1]), dim=-1)


def part_of(amount: float, heads: Sequence[int] = (0, 1, 2, 3)) -> Callable[[Tensor, Tensor], Tensor]:
    """A map that is Algorithm 1's by `amount` and the layers' own by the rest, in these heads alone."""

    def attention_map(query: Tensor, key: Tensor) -> Tensor:
        maps, plan = softmax_map(query, key), sinkhorn_map(query, key)
        for head in heads:
            maps[:, head] = (1 - amount) * maps[:, head] + amount * plan[:, head]
        return maps

    return attention_map


@torch.no_grad()
def most_aligned_heads(
    unet: nn.Module, block: str, latents: Tensor, timestep: int, prompts: list[Prompts]
) -> list[int]:
    """The head of a block whose queries and keys agree most, of each image: the mean cosine of those of a token."""
    module, seen = unet.get_submodule(LAYERS[block]), []
    hook = module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for x, prompt in zip(latents, prompts, strict=True):
        unet(x[None], torch.tensor([timestep]), context=prompt.parts[0][None])
    hook.remove()
    tokens = torch.cat(seen)
    query, key = (each(tokens).unflatten(-1, (module.heads, -1)) for each in (module.to_q, module.to_k))
    cosines = (query * key).sum(dim=-1) / query.norm(dim=-1) / key.norm(dim=-1)
    return cosines.mean(dim=1).argmax(dim=1).tolist()


@contextmanager
def weakened(unet: nn.Module, blocks: str, attention_map=sinkhorn_map) -> Iterator[None]:
    """While open, these blocks' self-attention has another map."""
    modules = [unet.get_submodule(LAYERS[block]) for block in blocks.split(",")]

    def attending(module: nn.Module):
        def forward(x: Tensor, context: None = None, mask: None = None) -> Tensor:
            query, key, value = (
                projection(x).unflatten(-1, (module.heads, -1)).transpose(1, 2)
                for projection in (module.to_q, module.to_k, module.to_v)
            )
            out = attention_map(query, key) @ value
            return module.to_out(out.transpose(1, 2).flatten(2))

        return forward

    for module in modules:
        module.forward = attending(module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


@dataclass
class Prompts:
    """The texts of one image, each (tokens, features), and the weights of the parts of its prompt."""

    parts: list[Tensor]
    weights: list[float]
    negative: Tensor


class Definition:
    """The guided steps of one pass for one image, in order. Its settings are the definition's, not the extension's."""

    def __init__(
        self, unet: nn.Module, prompts: Prompts, cfg: float, blocks: str = "mid", contrast: float = 1.0,
        rescale: float = 0.0, unit: str = "paper", predicts: str = "noise", attention_map=sinkhorn_map,
        every: int = 1,
    ) -> None:  # fmt: skip
        self.unet, self.prompts, self.cfg, self.blocks = unet, prompts, cfg, blocks
        self.contrast, self.rescale, self.unit, self.predicts = contrast, rescale, unit, predicts
        self.attention_map = attention_map
        self.size: float | None = None
        self.every, self.guided, self.delta = every, 0, None
        self.ratio: float | None = None

    def noise(self, x: Tensor, timestep: int, texts: list[Tensor]) -> Tensor:
        rows = len(texts)
        out = self.unet(x.expand(rows, -1, -1, -1), torch.tensor([timestep] * rows), context=torch.stack(texts))
        alpha = ALPHAS[timestep]
        return out if self.predicts == "noise" else alpha.sqrt() * out + (1 - alpha).sqrt() * x

    @torch.no_grad()
    def step(self, x: Tensor, timestep: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """The guided noise for x = √ᾱ x₀ + √(1−ᾱ) ε, (channels, height, width); the unconditional noise, shifted as
        much; and the noise without ASAG."""
        alpha, weights = ALPHAS[timestep], self.prompts.weights
        *conds, uncond = self.noise(x, timestep, [*self.prompts.parts, self.prompts.negative])
        plain = uncond + self.cfg * sum(w * (cond - uncond) for w, cond in zip(weights, conds, strict=True))
        if not scale:
            self.guided = 0
            return plain, uncond, plain
        total = sum(map(abs, weights))
        if self.guided % self.every == 0:
            with weakened(self.unet, self.blocks, self.attention_map):
                weak = self.noise(x, timestep, self.prompts.parts)
            self.delta = sum(w * (cond - each) for w, cond, each in zip(weights, conds, weak, strict=True)) / total
        self.guided += 1
        delta = self.delta

        def picture(noise: Tensor) -> Tensor:
            return (x - (1 - alpha).sqrt() * noise) / alpha.sqrt()

        pattern = sum(w * picture(cond) for w, cond in zip(weights, conds, strict=True))
        pattern = pattern - pattern.mean(dim=(1, 2), keepdim=True)
        share = (delta * pattern).sum(dim=(1, 2), keepdim=True) / (pattern**2).sum(dim=(1, 2), keepdim=True)
        delta = delta - (1 - self.contrast) * share * pattern
        size = float(delta.square().mean().sqrt())
        if self.unit == "cfg":
            # How much further CFG goes than the conditional prediction; it isn't there at a CFG scale of 1.
            further = sum((self.cfg - 1 / total) * w * (cond - uncond) for w, cond in zip(weights, conds, strict=True))
            if self.cfg != 1:
                now = max(size / float(further.square().mean().sqrt()), 0.002)
                self.ratio = now if self.ratio is None else 0.5 * self.ratio + 0.5 * now
            scale = 0.1 * scale if self.ratio is None else scale / self.ratio
        if self.unit == "push" or (self.unit == "cfg" and self.ratio is None):
            self.size = size if self.size is None else 0.9 * self.size + 0.1 * size
            scale = scale / (self.size + 1e-3)
        guided = picture(plain + scale * delta)
        factor = self.rescale * picture(conds[0]).std() / guided.std() + 1 - self.rescale
        noise = (x - alpha.sqrt() * factor * guided) / (1 - alpha).sqrt()
        return noise, uncond + scale * delta, plain
