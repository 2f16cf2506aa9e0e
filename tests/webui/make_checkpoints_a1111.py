"""Small checkpoints with random weights for AUTOMATIC1111, in the key layouts of published ones, so that the tests here
run in minutes on a CPU.

    WEBUI/venv/bin/python tests/webui/make_checkpoints_a1111.py WEBUI [KIND ...]

writes tiny-KIND.safetensors into the WebUI's models folder, and beside it a .yaml that tells the host the sizes. The
modules are the host's own; blocks and their numbers are as published. The vocabulary of the text encoders comes from
open_clip, so nothing is downloaded. The kinds cn15, ip15 and clip need the ControlNet extension. It takes most sizes
from its own tables; probe/scripts/asag_control_sizes.py lets it read those of these files.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_checkpoint import random_tensor
from torch import Tensor, nn

UNET_WIDTH = {"sd15": 32, "sdxl": 64}  # published: 320
VAE_WIDTH = 32  # published: 128
TEXT = {"hidden_size": 768, "num_hidden_layers": 2, "intermediate_size": 256, "num_attention_heads": 12}
OPEN_CLIP, OPEN_CLIP_WIDTH = "ViT-S-32-alt", 256  # the smallest text encoder that open_clip has
IMAGE = {"hidden_size": 1280, "intermediate_size": 256, "num_attention_heads": 16, "num_hidden_layers": 2}
IMAGE |= {"image_size": 224, "patch_size": 14, "projection_dim": 1024, "hidden_act": "gelu"}
CONTROLNET = Path("extensions/sd-webui-controlnet")


def start_host(webui: Path) -> None:
    """Import A1111's modules as its launch.py does; the host reads the command line on the way."""
    sys.argv[1:] = ["--use-cpu", "all", "--no-half", "--precision", "full", "--skip-torch-cuda-test"]
    sys.path.insert(0, str(webui))
    from modules import initialize, launch_utils  # noqa: F401  (the latter puts the host's repositories on the path)

    initialize.imports()


def random_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    tensors = {key: random_tensor(key, shape, random) for key, shape in shapes.items()}
    for key in tensors:
        if key.endswith(("final_layer_norm.bias", "ln_final.bias")):
            tensors[key] += 0.05  # the host's emphasis divides by the mean of what comes out here
    return tensors


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def text_folder(webui: Path) -> Path:
    """CLIP-L's text encoder with few layers, as transformers reads it: config.json, vocab.json, merges.txt."""
    import open_clip
    from transformers import CLIPTextConfig

    folder = webui / "models" / "tiny-clip-text"
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {special.get(token, token): number for token, number in tokenizer.encoder.items()}
    CLIPTextConfig(**TEXT, vocab_size=len(vocabulary)).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = gzip.decompress(Path(open_clip.tokenizer.default_bpe()).read_bytes()).decode().split("\n")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines[1 : 1 + len(tokenizer.bpe_ranks)]]) + "\n")
    tokens = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    tokens |= {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77, **tokens}))
    return folder


def write_model(webui: Path, kind: str, config: Any) -> Path:
    """The checkpoint of a whole model, made by the host from `config`, and `config` beside it."""
    from modules import sd_disable_initialization, sd_models
    from omegaconf import OmegaConf

    file = webui / "models" / "Stable-diffusion" / f"tiny-{kind}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    config.model.params.first_stage_config.params.ddconfig.ch = VAE_WIDTH
    OmegaConf.save(config, file.with_suffix(".yaml"))
    with sd_disable_initialization.DisableInitialization(disable_clip=True):
        shapes = shapes_of(sd_models.instantiate_from_config(config.model))
    # The schedule's buffers and the averaged weights are no weights of a checkpoint.
    parts = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.")
    tensors = random_weights({key: shape for key, shape in shapes.items() if key.startswith(parts)})
    save_file(tensors, file, metadata={"format": "pt"})
    return file


def sd15(webui: Path) -> Path:
    from omegaconf import OmegaConf

    config = OmegaConf.load(webui / "configs" / "v1-inference.yaml")
    config.model.params.unet_config.params.model_channels = UNET_WIDTH["sd15"]
    config.model.params.cond_stage_config.params = {"version": str(text_folder(webui))}
    return write_model(webui, "sd15", config)


def sdxl(webui: Path) -> Path:
    from omegaconf import OmegaConf

    config = OmegaConf.load(webui / "repositories/generative-models/configs/inference/sd_xl_base.yaml")
    network = config.model.params.network_config.params
    network.model_channels, network.use_checkpoint = UNET_WIDTH["sdxl"], False
    network.context_dim = TEXT["hidden_size"] + OPEN_CLIP_WIDTH
    network.adm_in_channels = OPEN_CLIP_WIDTH + 6 * 256  # the pooled text and six numbers for the picture's size
    first, second = config.model.params.conditioner_config.params.emb_models[:2]
    first.params.version, first.params.layer_idx = str(text_folder(webui)), TEXT["num_hidden_layers"] - 1
    second.params.arch = OPEN_CLIP
    return write_model(webui, "sdxl", config)


def control(webui: Path) -> Path:
    """A ControlNet for sd15, in cldm's layout."""
    sys.path.insert(0, str(webui / CONTROLNET))
    from scripts import controlnet_model_guess as guess

    sizes = {"model_channels": UNET_WIDTH["sd15"], "hint_channels": 3, "use_fp16": False}
    shapes = shapes_of(guess.PlugableControlModel({**guess.controlnet_default_config, **sizes}, None))
    file = webui / "models" / "ControlNet" / "tiny-cn15.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(random_weights({key.removeprefix("control_model."): shape for key, shape in shapes.items()}), file)
    return file


def ip_adapter(webui: Path) -> Path:
    """An IP-Adapter for tiny-sd15 with four tokens, for the embeddings of `image_encoder`."""
    context, image = TEXT["hidden_size"], IMAGE["projection_dim"]
    shapes = {"image_proj.proj.weight": (4 * context, image), "image_proj.proj.bias": (4 * context,)}
    shapes |= {"image_proj.norm.weight": (context,), "image_proj.norm.bias": (context,)}
    # The order of published files: the attentions of the input blocks, of the output blocks, of the middle.
    factors = [1, 1, 2, 2, 4, 4, 4, 4, 4, 2, 2, 2, 1, 1, 1, 4]
    for number, factor in enumerate(factors):
        for name in ("to_k_ip", "to_v_ip"):
            shapes[f"ip_adapter.{2 * number + 1}.{name}.weight"] = (UNET_WIDTH["sd15"] * factor, context)
    file = webui / "models" / "ControlNet" / "tiny-ip-adapter_sd15.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(random_weights(shapes), file)
    return file


def image_encoder(webui: Path) -> Path:
    """The image encoder of IP-Adapter, where ControlNet's preprocessor ip-adapter_clip_sd15 looks for its own."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    shapes = shapes_of(CLIPVisionModelWithProjection(CLIPVisionConfig(**IMAGE)))
    file = webui / CONTROLNET / "annotator/downloads/clip_vision/clip_h.pth"
    file.parent.mkdir(parents=True, exist_ok=True)
    # The host refuses the zip files that newer versions of torch write.
    weights = {key: value.float() for key, value in random_weights(shapes).items()}
    torch.save(weights, file, _use_new_zipfile_serialization=False)
    return file


KINDS: dict[str, Callable[[Path], Path]] = {
    "sd15": sd15,
    "sdxl": sdxl,
    "cn15": control,
    "ip15": ip_adapter,
    "clip": image_encoder,
}
OF_CONTROLNET = {"cn15", "ip15", "clip"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("webui", type=lambda text: Path(text).expanduser().resolve(), help="the folder of the WebUI")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; default: all")
    asked = parser.parse_args()
    unknown = [kind for kind in asked.kinds if kind not in KINDS]
    if unknown:
        parser.error(f"unknown KIND: {', '.join(unknown)}; allowed: {', '.join(KINDS)}")
    start_host(asked.webui)
    without = set() if (asked.webui / CONTROLNET).is_dir() else OF_CONTROLNET
    for kind in asked.kinds or [kind for kind in KINDS if kind not in without]:
        print(KINDS[kind](asked.webui), flush=True)


if __name__ == "__main__":
    main()
