"""Small checkpoints with random weights for Forge and Forge Neo, in the key layouts of published ones, so that the
tests here run in minutes on a CPU.

    WEBUI/venv/bin/python tests/webui/make_checkpoints_forge.py WEBUI [KIND ...]

writes tiny-KIND.safetensors into the WebUI's models folder; without a KIND it writes all that the host has the classes
for. The modules are the host's own, made with small sizes. A host takes most sizes from its own files: those of a tiny
checkpoint are in its metadata, and probe/scripts/asag_sizes.py lets the host read them there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_checkpoint import HIDDEN, TOKENS, Checkpoint, write
from tiny_checkpoints_neo import NEOS

SD15, SDXL = "runwayml/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0"
SD3, FLUX = "stabilityai/stable-diffusion-3-medium-diffusers", "black-forest-labs/FLUX.1-dev"
WIDTH = 64  # channels of a UNet at every level


def is_neo(host: Path) -> bool:
    return (host / "modules_forge" / "packages").is_dir()


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
    made.add_vae(host, SD15, "first_stage_model.")
    made.add_clip(host, SD15, "text_encoder", "cond_stage_model.transformer.")
    return made


def sdxl(host: Path) -> Checkpoint:
    made = Checkpoint()
    make_unet(made, unet(**SDXL_UNET))
    made.add_vae(host, SDXL, "first_stage_model.")
    made.add_clip(host, SDXL, "text_encoder", "conditioner.embedders.0.transformer.")
    made.add_open_clip("text_encoder_2", "conditioner.embedders.1.model.")
    return made


def control(host: Path) -> Checkpoint:
    """A ControlNet for sd15, in cldm's layout."""
    from backend.nn.cnets.cldm import ControlNet

    made = Checkpoint(folder="ControlNet")
    sizes = {"hint_channels": 3, "in_channels": 4, "model_channels": WIDTH, "use_spatial_transformer": True}
    sizes |= {"hint_width": 16} if is_neo(host) else {"image_size": 32}
    made.add("control_model.", lambda: ControlNet(**sizes, **SD15_UNET))
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
    made.add_vae(host, SD3, "first_stage_model.")
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


def flux(host: Path, distilled: bool = True, stored: str = "half") -> Checkpoint:
    from backend.nn.flux import IntegratedFluxTransformer2DModel

    neos = {"out_channels": 16, "patch_size": 2} if is_neo(host) else {}
    made = Checkpoint(denoiser={**FLUX_SIZES, **neos, "guidance_embed": distilled}, stored=stored)
    made.detected = {"image_model": "flux", **made.denoiser}
    made.add("model.diffusion_model.", lambda: IntegratedFluxTransformer2DModel(**made.denoiser))
    made.add_vae(host, FLUX)
    made.add_clip(host, FLUX, "text_encoder", "text_encoders.clip_l.transformer.")
    made.add_t5(host, FLUX, "text_encoder_2", "text_encoders.t5xxl.transformer.")
    return made


def chroma(host: Path) -> Checkpoint:
    from backend.nn.chroma import IntegratedChromaTransformer2DModel

    if is_neo(host):
        patches = {"in_channels": 64, "out_channels": 64, "patch_size": 2, "txt_ids_dims": []}
        guidance = {"in_dim": 64, "out_dim": HIDDEN, "hidden_dim": 64, "n_layers": 2}
        made = Checkpoint(denoiser={**FLUX_SIZES, **patches, **guidance})
        made.detected = {"image_model": "chroma", **made.denoiser}
    else:
        guidance = {"guidance_out_dim": HIDDEN, "guidance_hidden_dim": 64, "guidance_n_layers": 2}
        made = Checkpoint(denoiser={**FLUX_SIZES, **guidance})
        # Forge finds it among Flux schnell's.
        made.detected = {"image_model": "flux", **FLUX_SIZES, "guidance_embed": False}
    made.add("model.diffusion_model.", lambda: IntegratedChromaTransformer2DModel(**made.denoiser))
    made.add_vae(host, FLUX)
    made.add_t5(host, "Chroma", "text_encoder", "text_encoders.t5xxl.transformer.")
    return made


def mugen(host: Path) -> Checkpoint:
    """SDXL with the latents of Flux.2, and a flow."""
    made = Checkpoint()
    make_unet(made, {**unet(**SDXL_UNET), "in_channels": 32, "out_channels": 32})
    made.add_vae(host, "CabalResearch/Mugen", name="AutoencoderKLFlux2")
    made.add_clip(host, SDXL, "text_encoder", "conditioner.embedders.0.transformer.")
    made.add_open_clip("text_encoder_2", "conditioner.embedders.1.model.")
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
    # Neo knows these two by their files' names.
    "sdxl-rectified": sdxl,
    "flux-kontext": flux,
    "flux-fp8": lambda host: flux(host, stored="fp8"),
    "flux-q8": lambda host: flux(host, stored="q8"),
    "flux-q4": lambda host: flux(host, stored="q4"),
    # It needs bitsandbytes, which the WebUI then finds, too.
    "flux-nf4": lambda host: flux(host, stored="nf4"),
    "mugen": mugen,
    **NEOS,
}
ONLY_FORGES, ONLY_NEOS = {"sd3"}, {*NEOS, "sdxl-rectified", "flux-kontext", "mugen"}
ASKED_FOR = {"flux-nf4"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("webui", type=lambda text: Path(text).expanduser().resolve(), help="the folder of the WebUI")
    parser.add_argument(
        "kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; default: all, without {', '.join(ASKED_FOR)}"
    )
    asked = parser.parse_args()
    sys.argv[1:] = ["--cpu" if is_neo(asked.webui) else "--always-cpu"]
    packages = ["", "packages_3rdparty", "repositories/huggingface_guess", "modules_forge/packages"]
    sys.path[:0] = [str(asked.webui / package) for package in packages]
    others = ONLY_FORGES if is_neo(asked.webui) else ONLY_NEOS
    for kind in asked.kinds or [kind for kind in KINDS if kind not in others | ASKED_FOR]:
        print(write(KINDS[kind](asked.webui), asked.webui, kind), flush=True)


if __name__ == "__main__":
    main()
