"""Small checkpoints with random weights for Forge and Forge Neo, in the key layouts of published ones, so that the
tests here run in minutes on a CPU.

    WEBUI/venv/bin/python tests/webui/make_checkpoints_forge.py WEBUI [KIND ...]

writes tiny-KIND.safetensors into the WebUI's models folder; without a KIND it writes all that the host has the classes
for. The modules are the host's own, made with small sizes. A host takes most sizes from its own files: those of a tiny
checkpoint are in its metadata, and probe/scripts/asag_sizes.py lets the host read them there.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

SD15, SDXL = "runwayml/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0"
SD3, FLUX = "stabilityai/stable-diffusion-3-medium-diffusers", "black-forest-labs/FLUX.1-dev"
WIDTH = 64  # channels of a UNet at every level
HIDDEN = 256  # of a transformer
TOKENS = 64  # width of T5's tokens, where the model may choose it
VAE = {"block_out_channels": [32, 32, 32, 32]}
# Hidden sizes stay: the hosts concatenate and pad to what they expect.
CLIP = {"num_hidden_layers": 2, "intermediate_size": 64}
# Branches whose sum would otherwise drown the input.
RESIDUAL = ("out_layers.3", "to_out.0", "ff.net.2", "proj_out", "c_proj", "fc2", "out_proj", "conv2")
EMBEDDINGS = ("embed_tokens.weight", "shared.weight", "attention_bias.weight", "pos_embed", "pad_token")


@dataclass
class Checkpoint:
    """Shapes by key, and what the host is to know of them: `detected`, what it looks up the kind of model with (None:
    as it reads it from the weights); `configs`, by component, what differs from its own config.json; `denoiser`, what
    the denoiser's class is made with (None: what was detected)."""

    folder: str = "Stable-diffusion"
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    detected: dict[str, Any] | None = None
    denoiser: dict[str, Any] | None = None
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, prefix: str, make: Callable[[], nn.Module]) -> None:
        with torch.device("meta"):
            module = make()
        self.shapes |= {prefix + key: tuple(value.shape) for key, value in module.state_dict().items()}

    def add_vae(self, host: Path, repository: str, prefix: str = "first_stage_model.") -> None:
        from backend.nn.vae import IntegratedAutoencoderKL

        config = json.loads((host / "backend/huggingface" / repository / "vae/config.json").read_text())
        self.configs["vae"] = VAE
        self.add(prefix, lambda: IntegratedAutoencoderKL.from_config({**config, **VAE}))

    def add_clip(self, host: Path, repository: str, component: str, prefix: str, projected: bool = False) -> None:
        from transformers import CLIPTextConfig, CLIPTextModel

        config = CLIPTextConfig.from_pretrained(host / "backend/huggingface" / repository / component, **CLIP)
        self.configs[component] = CLIP
        self.add(prefix, lambda: CLIPTextModel(config))
        if projected:
            self.shapes[f"{prefix}text_projection.weight"] = (config.hidden_size, config.hidden_size)

    def add_open_clip(self, component: str, prefix: str, width: int = 1280) -> None:
        """SDXL's second text encoder, which its checkpoints have in open_clip's layout."""
        self.configs[component] = CLIP
        layers, inner = CLIP["num_hidden_layers"], CLIP["intermediate_size"]
        shapes = {
            "positional_embedding": (77, width),
            "text_projection": (width, width),
            "logit_scale": (),
            "token_embedding.weight": (49408, width),
        }
        norms = ["ln_final", *(f"transformer.resblocks.{i}.ln_{j}" for i in range(layers) for j in (1, 2))]
        shapes |= {f"{norm}.{name}": (width,) for norm in norms for name in ("weight", "bias")}
        for block in (f"transformer.resblocks.{i}" for i in range(layers)):
            shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
            for name, outs, ins in (("attn.out_proj", width, width), ("mlp.c_fc", inner, width)):
                shapes |= {f"{block}.{name}.weight": (outs, ins), f"{block}.{name}.bias": (outs,)}
            shapes |= {f"{block}.mlp.c_proj.weight": (width, inner), f"{block}.mlp.c_proj.bias": (width,)}
        self.shapes |= {prefix + key: shape for key, shape in shapes.items()}

    def add_t5(self, host: Path, repository: str, component: str, prefix: str, width: int = TOKENS) -> None:
        from backend.nn.t5 import T5

        config = json.loads((host / "backend/huggingface" / repository / component / "config.json").read_text())
        changes = {"d_model": width, "d_ff": 64, "num_layers": 2, "num_heads": 4}
        self.configs[component] = changes
        self.add(prefix, lambda: T5({**config, **changes}))


def unet(**sizes: Any) -> dict[str, Any]:
    return {
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": WIDTH,
        "use_spatial_transformer": True,
        **sizes,
    }


SD15_UNET = {
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 1, 1, 1],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "num_heads": 8,
    "num_head_channels": -1,
}
SDXL_UNET = {
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 1, 1],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "context_dim": 2048,
    "num_heads": -1,
    "num_head_channels": 32,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
}


def make_unet(made: Checkpoint, config: dict[str, Any]) -> None:
    from backend.nn.unet import IntegratedUNet2DConditionModel

    made.denoiser = config
    made.detected = {"adm_in_channels": None, "use_temporal_attention": False, **config, "model_channels": 320}
    made.add("model.diffusion_model.", lambda: IntegratedUNet2DConditionModel(**config))


def sd15(host: Path) -> Checkpoint:
    made = Checkpoint()
    depths = {"transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "use_linear_in_transformer": False}
    make_unet(made, unet(**SD15_UNET, **depths))
    made.add_vae(host, SD15)
    made.add_clip(host, SD15, "text_encoder", "cond_stage_model.transformer.")
    return made


def sdxl(host: Path) -> Checkpoint:
    made = Checkpoint()
    make_unet(made, unet(**SDXL_UNET))
    made.add_vae(host, SDXL)
    made.add_clip(host, SDXL, "text_encoder", "conditioner.embedders.0.transformer.")
    made.add_open_clip("text_encoder_2", "conditioner.embedders.1.model.")
    return made


def control(host: Path) -> Checkpoint:
    """A ControlNet for sd15, in cldm's layout."""
    from backend.nn.cnets.cldm import ControlNet

    made = Checkpoint(folder="ControlNet")
    sizes = {"image_size": 32, "hint_channels": 3, "in_channels": 4, "model_channels": WIDTH}
    made.add("control_model.", lambda: ControlNet(**sizes, **SD15_UNET, use_spatial_transformer=True))
    return made


def ip_adapter(host: Path) -> Checkpoint:
    """An IP-Adapter for sd15, for the image embeddings of CLIP-ViT-L (768)."""
    made = Checkpoint(folder="ControlNet")
    made.shapes = {"image_proj.proj.weight": (4 * 768, 768), "image_proj.proj.bias": (4 * 768,)}
    made.shapes |= {"image_proj.norm.weight": (768,), "image_proj.norm.bias": (768,)}
    attentions = 16  # the order of published files: input, output, middle
    made.shapes |= {f"ip_adapter.{2 * i + 1}.to_{n}_ip.weight": (WIDTH, 768) for i in range(attentions) for n in "kv"}
    return made


def sd3(host: Path) -> Checkpoint:
    from backend.nn.mmditx import MMDiTX

    made, depth = Checkpoint(), 4
    context = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 64 * depth}}
    sizes = {"in_channels": 16, "patch_size": 2, "out_channels": 16, "depth": depth, "adm_in_channels": 2048}
    patches = {"num_patches": 64 * 64, "pos_embed_max_size": 64, "pos_embed_scaling_factor": None, "input_size": None}
    made.add("model.diffusion_model.", lambda: MMDiTX(**sizes, **patches, context_embedder_config=context))
    made.add_vae(host, SD3)
    for component, name in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        made.add_clip(host, SD3, component, f"text_encoders.{name}.transformer.", projected=True)
    made.add_t5(host, SD3, "text_encoder_3", "text_encoders.t5xxl.transformer.", width=4096)
    return made


FLUX_SIZES = {
    "in_channels": 16,
    "context_in_dim": TOKENS,
    "hidden_size": HIDDEN,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 4,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
    "vec_in_dim": 768,
}


def flux(host: Path, distilled: bool = True) -> Checkpoint:
    from backend.nn.flux import IntegratedFluxTransformer2DModel

    made = Checkpoint(denoiser={**FLUX_SIZES, "guidance_embed": distilled})
    made.detected = {"image_model": "flux", **made.denoiser}
    made.add("model.diffusion_model.", lambda: IntegratedFluxTransformer2DModel(**made.denoiser))
    made.add_vae(host, FLUX, "vae.")
    made.add_clip(host, FLUX, "text_encoder", "text_encoders.clip_l.transformer.")
    made.add_t5(host, FLUX, "text_encoder_2", "text_encoders.t5xxl.transformer.")
    return made


def chroma(host: Path) -> Checkpoint:
    from backend.nn.chroma import IntegratedChromaTransformer2DModel

    guidance = {"guidance_out_dim": HIDDEN, "guidance_hidden_dim": 64, "guidance_n_layers": 2}
    made = Checkpoint(denoiser={**FLUX_SIZES, **guidance})
    # Forge finds it among Flux schnell's.
    made.detected = {"image_model": "flux", **FLUX_SIZES, "guidance_embed": False}
    made.add("model.diffusion_model.", lambda: IntegratedChromaTransformer2DModel(**made.denoiser))
    made.add_vae(host, FLUX, "vae.")
    made.add_t5(host, "Chroma", "text_encoder", "text_encoders.t5xxl.transformer.")
    return made


KINDS: dict[str, Callable[[Path], Checkpoint]] = {
    "sd15": sd15,
    "sdxl": sdxl,
    "cn15": control,
    "ip15": ip_adapter,
    "sd3": sd3,
    "flux": flux,
    "flux-schnell": lambda host: flux(host, distilled=False),
    "chroma": chroma,
}


def random_tensor(key: str, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """Normal, so that every layer keeps the size of what it is given; norms near 1, biases near 0. Half precision."""
    if key.endswith("position_ids"):
        return torch.arange(shape[-1]).expand(shape).contiguous()
    if key.endswith("logit_scale"):
        return torch.tensor(4.6055)
    drawn = torch.randn(shape, generator=random)
    if key.endswith("bias"):
        return (0.02 * drawn).half()
    if len(shape) <= 1:
        return (1 + 0.02 * drawn).half()
    if "embedding" in key or key.endswith(EMBEDDINGS):
        return (0.02 * drawn).half()
    gain = 0.4 if any(name in key for name in RESIDUAL) else 1.0
    if key.endswith(("attn1.to_q.weight", "attn1.to_k.weight")):
        gain = 2.0  # attention that is far from uniform
    return (gain / math.sqrt(math.prod(shape[1:])) * drawn).half()


def write(host: Path, kind: str) -> Path:
    made, random = KINDS[kind](host), torch.Generator().manual_seed(1)
    tensors = {key: random_tensor(key, shape, random) for key, shape in made.shapes.items()}
    sizes = {"detected": made.detected, "denoiser": made.denoiser, "configs": made.configs}
    file = host / "models" / made.folder / f"tiny-{kind}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata={"format": "pt", "asag_sizes": json.dumps(sizes)})
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("webui", type=lambda text: Path(text).expanduser().resolve(), help="the folder of the WebUI")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; default: all")
    asked = parser.parse_args()
    sys.argv[1:] = ["--always-cpu"]
    packages = ["", "packages_3rdparty", "repositories/huggingface_guess", "modules_forge/packages"]
    sys.path[:0] = [str(asked.webui / package) for package in packages]
    for kind in asked.kinds or KINDS:
        print(write(asked.webui, kind), flush=True)


if __name__ == "__main__":
    main()
