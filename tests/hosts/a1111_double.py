"""The double of AUTOMATIC1111 1.10 around a real UNet: what its adapter imports, and a request's steps in their order.

Written from modules/sd_samplers_cfg_denoiser.py (CFGDenoiser.forward), modules/sd_samplers_timesteps.py and
k-diffusion's CompVisDenoiser.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tests.hosts.callbacks_double import Callbacks
from tests.hosts.reference import ALPHAS, Prompts


class SdModel(nn.Module):
    """The double of LatentDiffusion."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.diffusion_model = unet
        self.register_buffer("alphas_cumprod", ALPHAS)

    def apply_model(self, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        return self.model.diffusion_model(x, t, context=torch.cat(cond["c_crossattn"], 1))


class CompVisDenoiser(nn.Module):
    """The double of k-diffusion's: a picture at a sigma."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner_model = model
        self.sigmas = ((1 - ALPHAS) / ALPHAS).sqrt()

    def forward(self, x: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        wide = sigma[:, None, None, None]
        t = (self.sigmas[None] - sigma[:, None]).abs().argmin(dim=1)
        return x - wide * self.inner_model.apply_model(x / (wide**2 + 1).sqrt(), t, **kwargs)


class CompVisTimestepsDenoiser(nn.Module):
    """The double of the host's: noise at a timestep."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner_model = model

    def forward(self, x: Tensor, timesteps: Tensor, **kwargs: Any) -> Tensor:
        return self.inner_model.apply_model(x, timesteps, **kwargs)


class CompVisTimestepsVDenoiser(CompVisTimestepsDenoiser):
    """The double of the host's for models of velocities."""

    def forward(self, x: Tensor, timesteps: Tensor, **kwargs: Any) -> Tensor:
        alpha = self.inner_model.alphas_cumprod[timesteps.long(), None, None, None]
        return alpha.sqrt() * super().forward(x, timesteps, **kwargs) + (1 - alpha).sqrt() * x


DENOISERS = {"sigmas": CompVisDenoiser, "noise": CompVisTimestepsDenoiser, "velocity": CompVisTimestepsVDenoiser}


@dataclass
class Options:
    """What a request is made of beside ASAG. `mask` blends as the host does with an inpainting's."""

    denoiser: str = "sigmas"
    cfg: float = 7.0
    cfg_plus_plus: bool = False
    batched: bool = True
    without_uncond: tuple[int, ...] = ()
    mask: Tensor | None = None
    # InstructPix2Pix: a row more for each image, and CFG for its picture (combine_denoised_for_edit_model).
    edit: bool = False
    passes: list[list[Tensor]] = field(default_factory=list)
    timesteps: tuple[int, ...] = (801, 401)


class CFGDenoiser:
    """The double of the host's class of the same name."""

    def __init__(self, host: Host) -> None:
        self.host, self.p, self.step, self.total_steps = host, host.p, 0, len(host.options.timesteps)
        self.inner_model = DENOISERS[host.options.denoiser](host.sd_model)
        self.cond_scale_miltiplier = 1 / 12.5 if host.options.cfg_plus_plus else 1.0
        self.need_last_noise_uncond, self.last_noise_uncond = host.options.cfg_plus_plus, None
        batch = [[SimpleNamespace(weight=weight) for weight in each.weights] for each in host.prompts]
        extra = {"cond": SimpleNamespace(batch=batch), "cond_scale": host.options.cfg}
        self.sampler = SimpleNamespace(sampler_extra_args=extra, last_latent=None)

    def combine_denoised(self, x_out: Tensor, conds_list: list[Any], uncond: Tensor, cond_scale: float) -> Tensor:
        denoised_uncond = x_out[-uncond.shape[0] :]
        denoised = denoised_uncond.clone()
        for i, conds in enumerate(conds_list):
            for index, weight in conds:
                denoised[i] += (x_out[index] - denoised_uncond[i]) * (weight * cond_scale)
        return denoised

    def combine_denoised_for_edit_model(self, x_out: Tensor, cond_scale: float) -> Tensor:
        cond, picture, uncond = x_out.chunk(3)
        return uncond + cond_scale * (cond - picture) + 1.5 * (picture - uncond)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        options, prompts, callbacks = self.host.options, self.host.prompts, self.host.callbacks
        counts, index, conds_list = [len(each.parts) for each in prompts], 0, []
        for each in prompts:
            conds_list.append(list(zip(range(index, index + len(each.parts)), each.weights, strict=True)))
            index += len(each.parts)
        tensor = torch.stack([text for each in prompts for text in each.parts])
        uncond = torch.stack([each.negative for each in prompts])
        if options.mask is not None and options.denoiser != "sigmas":
            x = x * options.mask
        without_text = 2 if options.edit else 1
        x_in = torch.cat([x.repeat_interleave(torch.tensor(counts), dim=0), *[x] * without_text])
        sigma_in = torch.cat([sigma.repeat_interleave(torch.tensor(counts), dim=0), *[sigma] * without_text])
        params = SimpleNamespace(x=x_in, sigma=sigma_in, text_cond=tensor, text_uncond=uncond, denoiser=self)
        callbacks.call("on_cfg_denoiser", params)
        skip_uncond = self.step in options.without_uncond
        texts = tensor if skip_uncond else torch.cat([tensor, *[uncond] * without_text])
        size = len(texts) if options.batched else len(prompts)
        x_out = torch.cat(
            [
                self.inner_model(x_in[rows], sigma_in[rows], cond={"c_crossattn": [texts[rows]]})
                for rows in (slice(begin, begin + size) for begin in range(0, len(texts), size))
            ]
        )
        if skip_uncond:
            x_out = torch.cat([x_out, torch.stack([x_out[conds[0][0]] for conds in conds_list])])
        callbacks.call("on_cfg_denoised", SimpleNamespace(x=x_out, inner_model=self.inner_model))
        if self.need_last_noise_uncond:
            self.last_noise_uncond = x_out[-len(prompts) :].clone()
        scale = 1.0 if skip_uncond else options.cfg * self.cond_scale_miltiplier
        if options.edit:
            denoised = self.combine_denoised_for_edit_model(x_out, scale)
        else:
            denoised = self.combine_denoised(x_out, conds_list, uncond, scale)
        if options.mask is not None and options.denoiser == "sigmas":
            denoised = denoised * options.mask
        # What a preview of the prompt and an interrupted picture are made of: sampler.last_latent, but as predicted.
        self.host.previews.append(torch.stack([x_out[conds[0][0]] for conds in conds_list]))
        after = SimpleNamespace(x=denoised)
        callbacks.call("on_cfg_after_cfg", after)
        self.step += 1
        return after.x


class Host:
    """The double of the program with a model loaded and a request `p` that it samples."""

    def __init__(self, unet: nn.Module, prompts: list[Prompts]) -> None:
        self.unet, self.prompts, self.options = unet, prompts, Options()
        self.sd_model, self.callbacks = SdModel(unet), Callbacks()
        self.comments: list[str] = []
        self.unconditional: list[Tensor] = []
        self.previews: list[Tensor] = []
        self.p = SimpleNamespace(scripts=None, comment=self.comments.append, is_hr_pass=False, sample=self.sample)
        self.p.__dict__.update(extra_generation_params={}, iteration=0, script_args=(), seeds=[1, 2], batch_index=0)

    def network(self) -> nn.Module:
        """The UNet that the host runs."""
        return self.unet

    def modules(self) -> dict[str, ModuleType]:
        """The packages that the adapter imports, by name."""
        found = {name: ModuleType(f"modules.{name}") for name in ("sd_models", "sd_unet", "shared", "hypernetworks")}
        found["sd_models"].model_data = SimpleNamespace(sd_model=self.sd_model)
        found["sd_models"].checkpoint_aliases = {}
        found["sd_unet"].current_unet = None
        found["shared"].__dict__.update(loaded_hypernetworks=[], opts=SimpleNamespace(sd_model_checkpoint=None))
        found["hypernetworks"].hypernetwork = SimpleNamespace(apply_hypernetworks=lambda loaded, each: (each, each))
        found["sd_samplers_timesteps"] = ModuleType("modules.sd_samplers_timesteps")
        for denoiser in (CompVisTimestepsDenoiser, CompVisTimestepsVDenoiser):
            setattr(found["sd_samplers_timesteps"], denoiser.__name__, denoiser)
        found["script_callbacks"] = self.callbacks
        package = ModuleType("modules")
        for name, module in found.items():
            setattr(package, name, module)
        return {"modules": package, **{f"modules.{name}": module for name, module in found.items()}}

    def sample(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """The result of every step of every pass, (images, channels, height, width), as noise."""
        results: list[Tensor] = []
        self.unconditional.clear()
        self.previews.clear()
        for number, latents in enumerate(self.options.passes):
            self.p.is_hr_pass = number > 0
            denoiser = CFGDenoiser(self)
            for x, timestep in zip(latents, self.options.timesteps, strict=True):
                results.append(self._noise(denoiser, x, timestep))
                self.unconditional.append(denoiser.last_noise_uncond)
        return results

    def _noise(self, denoiser: CFGDenoiser, x: Tensor, timestep: int) -> Tensor:
        alpha, ones = ALPHAS[timestep], torch.ones(len(x), dtype=x.dtype)
        if self.options.denoiser != "sigmas":
            return denoiser.forward(x, timestep * ones)
        sigma = ((1 - alpha) / alpha).sqrt()
        picture = denoiser.forward(x / alpha.sqrt(), sigma * ones)
        return (x / alpha.sqrt() - picture) / sigma
