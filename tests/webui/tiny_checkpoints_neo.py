"""The small transformers that Neo alone has the classes of; for make_checkpoints_forge.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_checkpoint import HIDDEN, TOKENS, Checkpoint

LUMINA: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 16,
    "cap_feat_dim": TOKENS,
    "dim": 192,
    "n_layers": 4,
    "n_heads": 2,
    "n_kv_heads": 1,
    "qk_norm": True,
    "axes_dims": [32, 32, 32],
    "axes_lens": [300, 512, 512],
    "rope_theta": 10000.0,
    "ffn_dim_multiplier": 4.0,
}
ZIMAGE: dict[str, Any] = {
    **LUMINA,
    "dim": HIDDEN,
    "n_kv_heads": 2,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 8 / 3,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
KLEIN: dict[str, Any] = {
    "in_channels": 128,
    "out_channels": 128,
    "vec_in_dim": None,
    "context_in_dim": 3 * TOKENS,
    "hidden_size": HIDDEN,
    "mlp_ratio": 3.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 4,
    "axes_dim": [32, 32, 32, 32],
    "theta": 2000,
    "patch_size": 1,
    "qkv_bias": False,
    "guidance_embed": False,
    "txt_ids_dims": [3],
    "global_modulation": True,
    "mlp_silu_act": True,
    "ops_bias": False,
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
}
WAN: dict[str, Any] = {
    "in_dim": 16,
    "out_dim": 16,
    "dim": HIDDEN,
    "ffn_dim": 256,
    "text_dim": TOKENS,
    "num_heads": 2,
    "num_layers": 4,
}
ERNIE: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_attention_heads": 2,
    "num_layers": 4,
    "ffn_hidden_size": 256,
    "text_in_dim": TOKENS,
}


def lumina(host: Path) -> Checkpoint:
    from backend.nn.lumina import NextDiT

    made = Checkpoint(denoiser=LUMINA, detected={"image_model": "lumina2", **LUMINA, "dim": 2304})
    made.add("model.diffusion_model.", lambda: NextDiT(**LUMINA))
    made.add_vae(host, "neta-art/Neta-Lumina")
    made.add_llama("text_encoder", "Gemma2_2B_Config", "text_encoders.gemma2_2b.model.")
    return made


def zimage(host: Path) -> Checkpoint:
    from backend.nn.lumina import NextDiT

    made = Checkpoint(denoiser=ZIMAGE, detected={"image_model": "lumina2", **ZIMAGE, "dim": 3840})
    made.add("model.diffusion_model.", lambda: NextDiT(**ZIMAGE))
    made.add_vae(host, "Tongyi-MAI/Z-Image-Turbo")
    made.add_llama("text_encoder", "Qwen3_4BConfig", "text_encoders.qwen3_4b.transformer.model.")
    made.classes = {"Qwen3_06B": "Qwen3_4B"}
    return made


def klein(host: Path) -> Checkpoint:
    from backend.nn.flux import IntegratedFluxTransformer2DModel

    repository = "black-forest-labs/FLUX.2-klein-4B"
    made = Checkpoint(denoiser=KLEIN, detected={"image_model": "flux2", **KLEIN, "hidden_size": 3072})
    made.add("model.diffusion_model.", lambda: IntegratedFluxTransformer2DModel(**KLEIN))
    made.add_vae(host, repository, name="AutoencoderKLFlux2")
    # It takes what three layers give, the last of them the 27th.
    made.add_llama("text_encoder", "Qwen3_4BConfig", "text_encoders.qwen3_4b.transformer.model.", layers=28)
    made.classes = {"Qwen3_06B": "Qwen3_4B"}
    return made


def wan(host: Path) -> Checkpoint:
    from backend.nn.wan import WanModel

    repository = "Wan-AI/Wan2.1-T2V-14B"
    made = Checkpoint(denoiser=WAN, detected={"image_model": "wan2.1", "model_type": "t2v", **WAN})
    made.add("model.diffusion_model.", lambda: WanModel(**WAN))
    made.add_vae(host, repository, name="WanVAE")
    made.add_t5(host, repository, "text_encoder", "text_encoders.umt5xxl.transformer.")
    return made


def ernie(host: Path) -> Checkpoint:
    from backend.nn.ernie import ErnieImageModel

    made = Checkpoint(denoiser=ERNIE, detected={"image_model": "ernie", **ERNIE})
    made.add("model.diffusion_model.", lambda: ErnieImageModel(**ERNIE))
    made.add_vae(host, "baidu/ERNIE-Image", name="AutoencoderKLFlux2")
    made.add_llama("text_encoder", "Ministral3_3BConfig", "text_encoders.ministral3_3b.transformer.model.")
    return made


NEOS: dict[str, Callable[[Path], Checkpoint]] = {
    "lumina": lumina,
    "zimage": zimage,
    "klein": klein,
    "wan": wan,
    "ernie": ernie,
}
