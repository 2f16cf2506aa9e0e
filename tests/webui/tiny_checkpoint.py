"""A small checkpoint with random weights: the keys and shapes of a host's own modules, and what the host must be told
of their sizes. For make_checkpoints_forge.py; the host's packages must be importable."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_quantised import stored_as, write_gguf
from torch import Tensor, nn

HIDDEN = 256  # width of a transformer
TOKENS = 64  # width of the text's tokens, where the model may choose it
VAE = {"block_out_channels": [32, 32, 32, 32], "base_dim": 16}
# Hidden sizes stay: the hosts concatenate and pad to what they expect.
CLIP = {"num_hidden_layers": 2, "intermediate_size": 64}
# Branches whose sum would otherwise drown the input.
RESIDUAL = ("out_layers.3", "to_out.0", "ff.net.2", "proj_out", "c_proj", "fc2", "out_proj", "conv2")
EMBEDDINGS = ("embed_tokens.weight", "shared.weight", "attention_bias.weight", "pos_embed", "pad_token")


@dataclass
class Checkpoint:
    """Shapes by key, and what the host is to know of them: `detected`, what it looks up the kind of model with (None:
    as it reads it from the weights); `configs`, by component, what differs from its own config.json; `denoiser`, what
    the denoiser's class is made with (None: what was detected); `dataclasses`, what differs in those that Neo's
    language models have their sizes in, or in classes of their parts; `classes`, which of those models stands for
    another (Neo chooses by size). `seed` is that of the weights, and `stored` how the denoiser's matrices are: in half
    precision, as "fp8", as "nf4" (bitsandbytes), or in a file of GGUF as "q8" (Q8_0) or "q4" (Q4_K)."""

    folder: str = "Stable-diffusion"
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    detected: dict[str, Any] | None = None
    denoiser: dict[str, Any] | None = None
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    dataclasses: dict[str, dict[str, Any]] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)
    seed: int = 1
    stored: str = "half"

    def add(self, prefix: str, make: Callable[[], nn.Module]) -> None:
        with torch.device("meta"):
            module = make()
        self.shapes |= {prefix + key: tuple(value.shape) for key, value in module.state_dict().items()}

    def add_vae(self, host: Path, repository: str, prefix: str = "vae.", name: str = "IntegratedAutoencoderKL") -> None:
        """The decoder called `name` of backend/nn/vae.py or wan_vae.py."""
        from backend.nn import vae

        made = getattr(vae, name, None) or import_module("backend.nn.wan_vae").WanVAE
        config = json.loads((host / "backend/huggingface" / repository / "vae/config.json").read_text())
        changes = {name: size for name, size in VAE.items() if name in config}
        self.configs["vae"] = changes
        self.add(prefix, lambda: made.from_config({**config, **changes}))

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

    def add_llama(self, component: str, config: str, prefix: str, layers: int = 3) -> None:
        """A language model of Neo's own, whose sizes are in a dataclass: `config`."""
        from backend.nn.llm import llama
        from backend.operations import using_forge_operations

        sizes = {"hidden_size": TOKENS, "intermediate_size": 64, "num_hidden_layers": layers}
        sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1}
        self.configs[component], self.dataclasses[config] = sizes, sizes
        with using_forge_operations(device=torch.device("meta"), dtype=torch.float16):
            self.add(prefix, lambda: llama.Llama2_(getattr(llama, config)(**sizes)))


def random_tensor(key: str, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """Normal, so that every layer keeps the size of what it is given; norms near 1, biases near 0. Half precision."""
    if key.endswith("position_ids"):
        return torch.arange(shape[-1]).expand(shape).contiguous()
    if key.endswith("logit_scale"):
        return torch.tensor(4.6055)
    if key.endswith("num_batches_tracked"):
        return torch.tensor(1)
    drawn = torch.randn(shape, generator=random)
    if key.endswith(("bias", "running_mean")):
        return (0.02 * drawn).half()
    if len(shape) <= 1:
        return (1 + 0.02 * drawn).half()
    if "embedding" in key or key.endswith(EMBEDDINGS):
        return (0.02 * drawn).half()
    gain = 0.4 if any(name in key for name in RESIDUAL) else 1.0
    if key.endswith(("attn1.to_q.weight", "attn1.to_k.weight")):
        gain = 2.0  # attention that is far from uniform
    return (gain / math.sqrt(math.prod(shape[1:])) * drawn).half()


def write(made: Checkpoint, host: Path, kind: str) -> Path:
    random = torch.Generator().manual_seed(made.seed)
    tensors = {key: random_tensor(key, shape, random) for key, shape in made.shapes.items()}
    names = ("detected", "denoiser", "configs", "dataclasses", "classes")
    sizes = json.dumps({name: getattr(made, name) for name in names})
    file = host / "models" / made.folder / f"tiny-{kind}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    if made.stored in ("q8", "q4"):
        return write_gguf(tensors, file.with_suffix(".gguf"), sizes, made.stored)
    if made.stored != "half":
        tensors = stored_as(made.stored, tensors)
    save_file(tensors, file, metadata={"format": "pt", "asag_sizes": sizes})
    return file
