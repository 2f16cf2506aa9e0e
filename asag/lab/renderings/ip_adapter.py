"""An IP-Adapter (Ye et al. 2023) that draws what a reference picture shows, for a trained UNet of renderings.

Its image encoder is the judge: 256 features become four tokens, to which every cross-attention attends beside the
caption's. The file is one that diffusers' `load_ip_adapter` reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection
from safetensors.torch import save_file

from asag.lab.embedded.subjects import Task, UNetSubject
from asag.lab.renderings import shipped
from asag.lab.renderings.adapters import AdapterSource, Given
from asag.lab.renderings.judge import FEATURES, load_judge
from asag.lab.renderings.names import Rendering

FILE = "ip-adapter.safetensors"
TOKENS = 4  # as diffusers reads this kind of file
_REFERENCES_DROPPED = 0.08

State = dict[str, dict[str, torch.Tensor]]


def attach(pipeline: DiffusionPipeline, weights: Path | State) -> None:
    """Give the pipeline's UNet an IP-Adapter: a file's, or the weights in the layout of such a file."""
    place, name = (weights.parent, weights.name) if isinstance(weights, Path) else (weights, "")
    pipeline.load_ip_adapter(place, subfolder="", weight_name=name, image_encoder_folder=None, low_cpu_mem_usage=False)


def new_state(unet: UNet2DConditionModel) -> State:
    """Untrained weights with which the UNet predicts what it did without: values of image tokens are 0."""
    projection = ImageProjection(FEATURES, unet.config.cross_attention_dim, TOKENS)
    keys = {}
    for number, layer in enumerate(_cross_attention(unet)):
        keys[f"{2 * number + 1}.to_k_ip.weight"] = layer.to_k.weight.detach().clone()
        keys[f"{2 * number + 1}.to_v_ip.weight"] = torch.zeros_like(layer.to_v.weight)
    return {"image_proj": _projection_state(projection), "ip_adapter": keys}


def state_of(unet: UNet2DConditionModel) -> State:
    """The weights of the IP-Adapter that a UNet has."""
    keys = {}
    for number, layer in enumerate(_cross_attention(unet)):
        assert isinstance(layer.processor, IPAdapterAttnProcessor2_0)
        keys[f"{2 * number + 1}.to_k_ip.weight"] = layer.processor.to_k_ip[0].weight
        keys[f"{2 * number + 1}.to_v_ip.weight"] = layer.processor.to_v_ip[0].weight
    return {"image_proj": _projection_state(unet.encoder_hid_proj.image_projection_layers[0]), "ip_adapter": keys}


def _cross_attention(unet: UNet2DConditionModel) -> list[Attention]:
    """In the order in which diffusers counts them."""
    places = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    return [unet.get_submodule(name.removesuffix(".processor")) for name in places]


def _projection_state(projection: ImageProjection) -> dict[str, torch.Tensor]:
    found = {"proj": projection.image_embeds, "norm": projection.norm}
    return {f"{name}.{kind}": getattr(module, kind) for name, module in found.items() for kind in ("weight", "bias")}


class ReferenceSource(AdapterSource):
    """Beside the caption, the judge's features of another picture of the same rendering; zeros now and then."""

    def __init__(self, renderings: Sequence[Rendering], base: Path, device: torch.device) -> None:
        super().__init__(renderings, base, device)
        self._judge = load_judge(base).to(device)

    @torch.no_grad()
    def added(self, rows: torch.Tensor, latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """(B,256)."""
        features = self._judge.features(self.renderings.pictures.draw(rows, generator))
        dropped = torch.rand(len(rows), 1, generator=generator, device=generator.device) < _REFERENCES_DROPPED
        return torch.where(dropped, 0.0, features)


class IpAdapterSubject(UNetSubject):
    """The adapter in the UNet learns; the UNet itself, that in `base`, stays as it is."""

    def __init__(self, base: Path, snr_limit: float) -> None:
        super().__init__(snr_limit=snr_limit)
        self._base = base

    def new(self) -> ModelMixin:
        pipeline = shipped.load_pipeline(self._base)
        unet = pipeline.unet.requires_grad_(False)
        attach(pipeline, new_state(unet))
        for part in state_of(unet).values():
            for parameter in part.values():
                parameter.requires_grad_(True)
        return unet

    def predict(self, model: ModelMixin, task: Task, given: Given) -> torch.Tensor:
        image: dict[str, Any] = {"image_embeds": [given.added[:, None]]}
        out = model(task.noisy, task.time, given.caption, added_cond_kwargs=image, return_dict=False)
        predicted: torch.Tensor = out[0]
        return predicted

    def save(self, model: ModelMixin, folder: Path) -> None:
        assert isinstance(model, UNet2DConditionModel)
        state = state_of(model)
        weights = {
            f"{part}.{name}": value.detach().contiguous()
            for part, some in state.items()
            for name, value in some.items()
        }
        save_file(weights, folder / FILE)
