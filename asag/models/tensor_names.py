"""Which model a checkpoint file holds, and which self-attention layers it has, from the names of its tensors.

A file names every tensor in its header, so that a model's blocks are known before it is loaded. The names are those of
the models' own repositories, which A1111, Forge, reForge and Neo load; some come in the names of diffusers, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from asag.blocks import Address

# The model alone, or in a checkpoint of all parts; Anima's files say "net.".
PREFIX = r"(?:model\.diffusion_model\.|net\.)?"
UNETS = ("SD1.5", "SD2", "SDXL", "SDXL refiner", "UNet")

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Contents:
    """The kind of model that a file holds, such as "SDXL", and its self-attention layers in the order in which the
    model runs them."""

    kind: str
    addresses: tuple[Address, ...]


@dataclass(frozen=True)
class Kind:
    """How to know a kind of model.

    `layers`: for each part, in the model's order, the name of a tensor that each of its self-attention layers has once.
    Its groups are the block's number and then what orders the layers inside the block; an empty group is 0. `mark`: a
    tensor that tells the kind from those further down in the list, with its last dimension if the name is not enough.
    """

    name: str
    layers: tuple[tuple[str, str], ...]
    mark: str = ""
    size: int | None = None

    def addresses(self, tensors: Shapes) -> tuple[Address, ...]:
        """The layers of the model with these tensors; none when it isn't of this kind."""
        if self.mark and not any(self.size in (None, *tensors[name][-1:]) for name, _ in _found(self.mark, tensors)):
            return ()
        return tuple(address for part, pattern in self.layers for address in _numbered(part, pattern, tensors))


def _found(pattern: str, names: Iterable[str]) -> list[tuple[str, re.Match[str]]]:
    compiled = re.compile(PREFIX + pattern)
    return [(name, match) for name in names if (match := compiled.fullmatch(name))]


def _numbered(part: str, pattern: str, names: Iterable[str]) -> list[Address]:
    """The layers of a part: those of a block are numbered from 0, in the order of the tensors' own numbers."""
    places = [[int(each or 0) for each in match.groups() if each is not None] for _, match in _found(pattern, names)]
    addresses: list[Address] = []
    for block, *_ in sorted(places):
        before = addresses[-1] if addresses and addresses[-1].block == block else None
        addresses.append(Address(part, block, before.layer + 1 if before else 0))
    return addresses


UNET = tuple(
    (part, rf"{blocks}\.(\d+)\.transformer_blocks\.(\d+)\.attn1\.to_q\.weight")
    for part, blocks in (
        ("in", r"input_blocks\.(\d+)"),
        ("mid", "middle_block()"),
        ("out", r"output_blocks\.(\d+)"),
    )
)
# Of the cross-attention, whose last dimension is that of the text's features.
UNET_TEXT = r"(?:input_blocks\.\d+|middle_block)\.\d+\.transformer_blocks\.\d+\.attn2\.to_k\.weight"
FLUX = (
    ("double", r"double_blocks\.(\d+)\.img_attn\.qkv\.weight"),
    ("single", r"single_blocks\.(\d+)\.linear1\.weight"),
)
FLUX_DIFFUSERS = (
    ("double", r"transformer_blocks\.(\d+)\.attn\.to_q\.weight"),
    ("single", r"single_transformer_blocks\.(\d+)\.attn\.to_q\.weight"),
)
# attn2: a second attention of SD3.5, over the image alone.
SD3 = (("joint", r"joint_blocks\.(\d+)\.x_block\.attn(2?)\.qkv\.weight"),)
# Nunchaku's files, with qweight, and diffusers' have the same names otherwise.
LUMINA = (("layer", r"layers\.(\d+)\.attention\.(?:qkv|to_qkv|to_q)\.q?weight"),)
QWEN = r"transformer_blocks\.(\d+)\.attn\.(?:to_q|to_qkv)\.q?weight"

KINDS = (
    Kind("SDXL refiner", UNET, UNET_TEXT, 1280),
    Kind("SDXL", UNET, UNET_TEXT, 2048),
    Kind("SD2", UNET, UNET_TEXT, 1024),
    Kind("SD1.5", UNET, UNET_TEXT, 768),
    Kind("UNet", UNET),
    Kind("Chroma", FLUX, r"distilled_guidance_layer\.in_proj\.weight"),
    Kind("Flux.2", FLUX, r"double_stream_modulation_img\.lin\.weight"),
    Kind("Flux", FLUX),
    Kind("Flux", FLUX_DIFFUSERS, r"single_transformer_blocks\.0\.attn\.to_q\.weight"),
    Kind("SD3", SD3),
    Kind("Z-Image", LUMINA, "cap_pad_token"),
    Kind("Lumina 2", LUMINA, r"noise_refiner\.0\.attention\.qkv\.weight"),
    Kind("Qwen-Image", (("joint", QWEN),), r"txt_norm\.weight"),
    Kind("Qwen-Image 2.1", (("layer", QWEN),), r"txt_in\.text_norm\.weight"),
    Kind("Krea 2", (("layer", r"blocks\.(\d+)\.attn\.wq\.weight"),), r"txtfusion\.projector\.weight"),
    Kind("Anima", (("layer", r"blocks\.(\d+)\.self_attn\.q_proj\.weight"),), r"blocks\.0\.mlp\.layer1\.weight"),
    Kind("Wan", (("layer", r"blocks\.(\d+)\.self_attn\.q\.weight"),), r"head\.modulation"),
    Kind("Ernie-Image", (("layer", r"layers\.(\d+)\.self_attention\.to_q\.weight"),)),
)

# Those that tell models apart.
KIND_NAMES = tuple(dict.fromkeys(kind.name for kind in KINDS if kind.name != "UNet"))


def recognize(tensors: Shapes) -> Contents | None:
    """The model with these tensors (name: shape); None when its names aren't those of a kind that is known here."""
    for kind in KINDS:
        addresses = kind.addresses(tensors)
        if addresses:
            return Contents(kind.name, addresses)
    return None
