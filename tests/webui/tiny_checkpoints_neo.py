"""The small transformers that Neo alone has the classes of; for make_checkpoints_forge.py."""

from __future__ import annotations

import json
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
# Wan 2.2's model that starts from images has four channels of mask and sixteen of image beside the latent's.
WAN_IMAGES: dict[str, Any] = {**WAN, "in_dim": 36}
QWEN: dict[str, Any] = {
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 4,
    "attention_head_dim": 128,
    "num_attention_heads": 2,
    "joint_attention_dim": TOKENS,
}
KREA: dict[str, Any] = {
    "features": HIDDEN,
    "txtdim": TOKENS,
    "heads": 2,
    "kvheads": 1,
    "layers": 4,
    "txtheads": 2,
    "txtkvheads": 2,
}
ANIMA: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": HIDDEN,
    "crossattn_emb_channels": TOKENS,
    "adaln_lora_dim": 32,
    "num_blocks": 4,
    "num_heads": 2,
}
ADAPTER = {"source_dim": TOKENS, "target_dim": TOKENS, "model_dim": TOKENS, "num_layers": 1, "num_heads": 2}
PID: dict[str, Any] = {
    "lq_latent_channels": 16,
    "lq_hidden_dim": 16,
    "lq_num_res_blocks": 1,
    "num_groups": 2,
    "hidden_size": HIDDEN,
    "pixel_attn_hidden_size": HIDDEN,
    "pixel_num_groups": 2,
    "patch_depth": 4,
    "pixel_depth": 1,
    "txt_embed_dim": TOKENS,
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


def wan(host: Path, sizes: dict[str, Any] = WAN, seed: int = 1) -> Checkpoint:
    from backend.nn.wan import WanModel

    repository = "Wan-AI/Wan2.1-T2V-14B"
    made = Checkpoint(denoiser=sizes, detected={"image_model": "wan2.1", "model_type": "t2v", **sizes}, seed=seed)
    made.add("model.diffusion_model.", lambda: WanModel(**sizes))
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


def qwen(host: Path) -> Checkpoint:
    from backend.nn.llm.qwen_vl import Qwen2VLVisionTransformer
    from backend.nn.qwen import QwenImageTransformer2DModel

    # Neo looks for "text_encoders..qwen25_7b.transformer.", which no file has, and else takes this.
    vision, prefix = {"num_layers": 1, "intermediate_size": 64}, "text_encoders.qwen25_7b."
    made = Checkpoint(denoiser=QWEN, detected={"image_model": "qwen_image", **QWEN})
    made.add("model.diffusion_model.", lambda: QwenImageTransformer2DModel(**QWEN))
    made.add_vae(host, "Qwen/Qwen-Image", name="WanVAE")
    made.add_llama("text_encoder", "Qwen25_7BVLI_Config", f"{prefix}model.")
    made.add(f"{prefix}visual.", lambda: Qwen2VLVisionTransformer(1280, TOKENS, **vision))
    made.dataclasses["qwen_vl.Qwen2VLVisionTransformer"] = vision
    return made


def krea(host: Path) -> Checkpoint:
    from backend.nn.krea import SingleStreamDiT
    from backend.nn.llm.qwen35 import QWEN3VL_VISION, Qwen3VLVisionModel

    vision = {"hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "depth": 3}
    vision |= {"deepstack_visual_indexes": [0, 1, 2]}
    prefix = "text_encoders.qwen3vl_4b.transformer."
    made = Checkpoint(denoiser=KREA, detected={"image_model": "krea2", **KREA})
    made.add("model.diffusion_model.", lambda: SingleStreamDiT(**KREA))
    made.add_vae(host, "krea/Krea-2-Raw", name="WanVAE")
    # It takes what twelve layers give, the last of them the 36th.
    made.add_llama("text_encoder", "Qwen3VL_4BConfig", f"{prefix}model.", layers=36)
    made.add(f"{prefix}visual.", lambda: Qwen3VLVisionModel({**QWEN3VL_VISION, **vision, "out_hidden_size": TOKENS}))
    made.dataclasses["QWEN3VL_VISION"] = vision
    return made


def anima(host: Path) -> Checkpoint:
    from backend.nn.anima import Anima, LLMAdapter

    made = Checkpoint(denoiser=ANIMA, detected={"image_model": "anima", **ANIMA})
    made.add("model.diffusion_model.", lambda: Anima(**ANIMA))
    made.add("model.diffusion_model.llm_adapter.", lambda: LLMAdapter(**ADAPTER))
    made.add_vae(host, "circlestone-labs/Anima", name="WanVAE")
    made.add_llama("text_encoder", "Qwen3_06BConfig", "text_encoders.qwen3_06b.transformer.model.")
    made.dataclasses["LLMAdapter"] = ADAPTER
    return made


def pid(host: Path) -> Checkpoint:
    """Its image decoder has the sizes of Flux's own: Neo chooses one by the latent's channels."""
    from backend.nn.pixeldit.pid import PidNet
    from backend.nn.vae import IntegratedAutoencoderKL

    made = Checkpoint(denoiser=PID, detected={"image_model": "pid", **PID})
    made.add("model.diffusion_model.", lambda: PidNet(**PID))
    config = json.loads((host / "backend/huggingface/black-forest-labs/FLUX.1-dev/vae/config.json").read_text())
    made.add("vae.", lambda: IntegratedAutoencoderKL.from_config(config))
    made.add_llama("text_encoder", "Gemma2_2B_Config", "text_encoders.gemma2_2b.transformer.model.")
    return made


NEOS: dict[str, Callable[[Path], Checkpoint]] = {
    "lumina": lumina,
    "zimage": zimage,
    "klein": klein,
    "wan": wan,
    "wan-low": lambda host: wan(host, seed=2),
    "wan-images": lambda host: wan(host, WAN_IMAGES),
    "ernie": ernie,
    "qwen": qwen,
    "qwen-edit": qwen,
    "krea": krea,
    "anima": anima,
    "pid": pid,
}
