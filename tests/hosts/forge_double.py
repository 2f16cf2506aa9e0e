"""The double of Forge around a real UNet: what its adapter imports, and a request's steps in their order.

Written from backend/sampling/sampling_function.py, modules/sd_samplers_cfg_denoiser.py, backend/modules/k_model.py and
backend/nn/unet.py, whose attention can be replaced from outside. Weights and layers are stable-diffusion-sdkit's.
"""

from __future__ import annotations

import copy
import math
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from ldm.modules.attention import BasicTransformerBlock, SpatialTransformer
from ldm.modules.diffusionmodules.openaimodel import (
    TimestepBlock,
    TimestepEmbedSequential,
    UNetModel,
    timestep_embedding,
)
from torch import Tensor, nn

from tests.hosts.callbacks_double import Callbacks
from tests.hosts.reference import ALPHAS, Prompts

SIGMAS = ((1 - ALPHAS) / ALPHAS).sqrt()


class ForgeBlock(BasicTransformerBlock):
    def forward(self, x: Tensor, context: Any = None, transformer_options: Any = None) -> Tensor:
        place = (*transformer_options["block"], transformer_options["block_index"])
        replaced = transformer_options.get("patches_replace", {}).get("attn1", {}).get(place)
        n = self.norm1(x)
        if replaced is None:
            n = self.attn1(n)
        else:
            given = self.attn1.to_q(n), self.attn1.to_k(n), self.attn1.to_v(n)
            n = self.attn1.to_out(replaced(*given, {"n_heads": self.attn1.heads}))
        x = n + x
        x = self.attn2(self.norm2(x), context=context) + x
        return self.ff(self.norm3(x)) + x


class ForgeSpatial(SpatialTransformer):
    def forward(self, x: Tensor, context: Any = None, transformer_options: Any = None) -> Tensor:
        height, hidden = x.shape[2], self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for index, block in enumerate(self.transformer_blocks):
            transformer_options["block_index"] = index
            hidden = block(hidden, context=context, transformer_options=transformer_options)
        return self.proj_out(hidden.transpose(1, 2).unflatten(2, (height, -1))) + x


class ForgeSequential(TimestepEmbedSequential):
    def forward(self, x: Tensor, emb: Tensor, context: Any = None, transformer_options: Any = None) -> Tensor:
        for layer in self:
            if isinstance(layer, TimestepBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context, transformer_options)
            else:
                x = layer(x)
        return x


class ForgeUnet(UNetModel):
    def forward(
        self,
        x: Tensor,
        timesteps: Any = None,
        context: Any = None,
        control: Any = None,
        transformer_options: Any = None,
    ) -> Tensor:
        emb, kept, h = self.time_embed(timestep_embedding(timesteps, self.model_channels)), [], x
        for index, module in enumerate(self.input_blocks):
            transformer_options["block"] = ("input", index)
            h = module(h, emb, context, transformer_options)
            kept.append(h)
        transformer_options["block"] = ("middle", 0)
        h = self.middle_block(h, emb, context, transformer_options)
        for index, module in enumerate(self.output_blocks):
            transformer_options["block"] = ("output", index)
            h = module(torch.cat([h, kept.pop()], dim=1), emb, context, transformer_options)
        return self.out(h)


FORGES = {
    BasicTransformerBlock: ForgeBlock,
    SpatialTransformer: ForgeSpatial,
    TimestepEmbedSequential: ForgeSequential,
    UNetModel: ForgeUnet,
}


class KModel(nn.Module):
    """The double of the host's: a picture at a sigma."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.diffusion_model, self.flow = copy.deepcopy(unet), False
        self.predictor = SimpleNamespace(prediction_type="eps", sigmas=SIGMAS)
        for module in self.diffusion_model.modules():
            module.__class__ = FORGES.get(type(module), type(module))

    def apply_model(self, x: Tensor, t: Tensor, c_crossattn: Any = None, transformer_options: Any = None) -> Tensor:
        if self.flow:
            x, t = x / (1 - t[:, None, None, None]), t / (1 - t)
        sigma = t[:, None, None, None]
        timestep = (SIGMAS[None] - t[:, None]).abs().argmin(dim=1).float()
        scaled = x / (sigma**2 + 1).sqrt()
        noise = self.diffusion_model(
            scaled, timestep, context=c_crossattn, control=None, transformer_options=transformer_options
        )
        return x - sigma * noise


class Patcher:
    """The double of a UnetPatcher."""

    def __init__(self, model: nn.Module, options: dict[str, Any] | None = None) -> None:
        self.model, self.model_options = model, options or {"transformer_options": {}}

    def clone(self) -> Patcher:
        return Patcher(self.model, dict(self.model_options))


def calc_cond_uncond_batch(
    model: nn.Module, cond: list[Any], uncond: list[Any] | None, x: Tensor, timestep: Tensor, model_options: Any
) -> tuple[Tensor, Tensor]:
    """The double of the host's pass: the last first, all in one call if memory allows, one by one if not."""
    to_run = [(each, 0) for each in cond] + [(each, 1) for each in uncond or []]
    to_run.reverse()
    sums, counts = [torch.zeros_like(x), torch.zeros_like(x)], [1e-37, 1e-37]
    for group in [to_run] if model_options.get("batched", True) else [[each] for each in to_run]:
        kinds = [kind for _, kind in group]
        options = {**model_options["transformer_options"], "cond_or_uncond": kinds, "sigmas": timestep}
        rows = torch.cat([x] * len(group)), torch.cat([timestep] * len(group))
        text = torch.cat([each["text"] for each, _ in group])
        output = model.apply_model(*rows, c_crossattn=text, transformer_options=options).chunk(len(group))
        for (each, kind), chunk in zip(group, output, strict=True):
            sums[kind] += chunk * each.get("strength", 1.0)
            counts[kind] += each.get("strength", 1.0)
    return sums[0] / counts[0], sums[1] / counts[1]


class Options:
    """What a request is made of beside ASAG."""

    def __init__(
        self, cfg: float = 7.0, batched: bool = True, passes: Any = (), timesteps: Any = (801, 401), flow: bool = False,
        always_uncond: bool = False,
    ) -> None:  # fmt: skip
        self.cfg, self.batched, self.passes, self.timesteps = cfg, batched, list(passes), timesteps
        # The same model as one of flow matching, whose x is (1 - σ) x₀ + σ ε.
        self.flow = flow
        # disable_cfg1_optimization, which samplers of CFG++ and other extensions set.
        self.always_uncond = always_uncond


class Host:
    """The double of the program with a model loaded and a request `p` that it samples. The parts of the prompts of all
    images have the same weights, as there."""

    def __init__(self, unet: nn.Module, prompts: list[Prompts]) -> None:
        self.unet, self.prompts, self.options = unet, prompts, Options()
        self.model, self.callbacks = KModel(unet), Callbacks()
        self.objects = SimpleNamespace(unet=Patcher(self.model))
        self.sd_model = SimpleNamespace(forge_objects=self.objects)
        self.comments: list[str] = []
        self.unconditional: list[Tensor] = []
        self.dropped = 0  # how many post-CFG functions, from the first, an extension takes off the list
        self.p = SimpleNamespace(scripts=None, comment=self.comments.append, is_hr_pass=False, sample=self.sample)
        self.p.__dict__.update(extra_generation_params={}, iteration=0, script_args=(), seeds=[1, 2], batch_index=0)

    def network(self) -> nn.Module:
        """The UNet that the host runs."""
        return self.model.diffusion_model

    def modules(self) -> dict[str, ModuleType]:
        """The packages that the adapter imports, by name."""
        package, models = ModuleType("modules"), ModuleType("modules.sd_models")
        models.model_data = SimpleNamespace(sd_model=self.sd_model)
        package.script_callbacks, package.sd_models = self.callbacks, models
        sampling = ModuleType("backend.sampling.sampling_function")
        sampling.calc_cond_uncond_batch = calc_cond_uncond_batch
        return {each.__name__: each for each in (package, models, self.callbacks, sampling)}

    def sample(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """The result of every step of every pass, (images, channels, height, width), as noise."""
        results: list[Tensor] = []
        self.unconditional.clear()
        self.p.cfg_scale, self.model.flow = self.options.cfg, self.options.flow
        for number, latents in enumerate(self.options.passes):
            self.p.is_hr_pass = number > 0
            inner = SimpleNamespace(inner_model=self.sd_model)
            denoiser = SimpleNamespace(step=0, total_steps=len(latents), p=self.p, inner_model=inner)
            for x, timestep in zip(latents, self.options.timesteps, strict=True):
                alpha, sigma = ALPHAS[timestep], SIGMAS[timestep]
                scaled = x / alpha.sqrt()
                given, level = (scaled / (1 + sigma), sigma / (1 + sigma)) if self.options.flow else (scaled, sigma)
                picture, uncond = self._sampling_function(denoiser, given, level * torch.ones(len(x), dtype=x.dtype))
                results.append((scaled - picture) / sigma)
                self.unconditional.append((scaled - uncond) / sigma)
                denoiser.step += 1
        return results

    def _sampling_function(self, denoiser: Any, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        self.callbacks.call("on_cfg_denoiser", SimpleNamespace(x=x, sigma=sigma, denoiser=denoiser))
        options = {**self.objects.unet.model_options, "batched": self.options.batched}
        weights = self.prompts[0].weights
        cond = [
            {"text": torch.stack([each.parts[part] for each in self.prompts]), "strength": weight}
            for part, weight in enumerate(weights)
        ]
        uncond: Any = [{"text": torch.stack([each.negative for each in self.prompts])}]
        scale, edit_strength = self.options.cfg, sum(weights)
        run = None if math.isclose(scale, 1.0) and not self.options.always_uncond else uncond
        cond_pred, uncond_pred = calc_cond_uncond_batch(self.model, cond, run, x, sigma, options)
        result = uncond_pred + (cond_pred - uncond_pred) * scale * edit_strength
        for function in options.get("sampler_post_cfg_function", [])[self.dropped :]:
            args = {"denoised": result, "cond": cond, "uncond": uncond, "model": self.model, "sigma": sigma, "input": x}
            args |= {"uncond_denoised": uncond_pred, "cond_denoised": cond_pred, "model_options": options}
            args["cond_scale"] = scale
            result = function(args)
        return result, uncond_pred
