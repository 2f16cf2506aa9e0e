"""A ControlNet (Zhang et al. 2023) that draws along given lines, for a trained UNet of renderings."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import ControlNetModel, ModelMixin, UNet2DConditionModel

from asag.lab.embedded.drawings import from_latents
from asag.lab.embedded.shipped import load_unet
from asag.lab.embedded.subjects import Task, UNetSubject
from asag.lab.renderings.adapters import AdapterSource, Given
from asag.lab.renderings.edges import control_picture

FOLDER = "controlnet"
_EMBEDDING = (32, 64)  # channels at 64x64 and at 32x32, the latents' size


def new_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """An untrained ControlNet on the CPU: a copy of the UNet's way down and middle, joined by zero convolutions."""
    copied = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=_EMBEDDING)
    # `from_unet` forgets the number of heads in the caption's summary, on which no weight's shape depends.
    heads = unet.config.addition_embed_type_num_heads
    controlnet = ControlNetModel.from_config(copied.config, addition_embed_type_num_heads=heads)
    controlnet.load_state_dict(copied.state_dict())
    return controlnet


class LineSource(AdapterSource):
    """Beside the caption, the lines of the very picture."""

    def added(self, rows: torch.Tensor, latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """(B,3,64,64) in [0,1]."""
        return control_picture(from_latents(latents))


class ControlNetSubject(UNetSubject):
    """The ControlNet learns; the UNet in `base` stays as it is."""

    def __init__(self, base: Path, device: torch.device, snr_limit: float) -> None:
        super().__init__(snr_limit=snr_limit)
        self._unet = load_unet(device, folder=base).requires_grad_(False)

    def new(self) -> ModelMixin:
        return new_controlnet(self._unet).to(memory_format=torch.channels_last)

    def predict(self, model: ModelMixin, task: Task, given: Given) -> torch.Tensor:
        down, middle = model(
            task.noisy, task.time, given.caption, controlnet_cond=given.added.to(task.noisy), return_dict=False
        )
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        predicted: torch.Tensor = self._unet(task.noisy, task.time, given.caption, **residuals, return_dict=False)[0]
        return predicted

    def save(self, model: ModelMixin, folder: Path) -> None:
        model.save_pretrained(folder / FOLDER)
