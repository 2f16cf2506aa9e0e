"""Which model a checkpoint file holds, and which self-attention layers it has, from the names of its tensors.

A file names every tensor in its header, so that a model's blocks are known before it is loaded. The names are those of
the models' own repositories, which A1111, Forge, reForge and Neo load; some come in the names of diffusers, too. How
many heads a layer has isn't a tensor's shape: HeadRule says from what it follows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from asag.blocks import Address

# The model alone, or in a checkpoint of all parts; Anima's files say "net.".
PREFIX = r"(?:model\.diffusion_model\.|net\.)?"
UNETS = ("SD1.5", "SD2", "SDXL", "SDXL refiner", "UNet")

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Contents:
    """The kind of model that a file holds, such as "SDXL", its self-attention layers in the order in which the model
    runs them, and how many heads these have, as far as the tensors tell."""

    kind: str
    addresses: tuple[Address, ...]
    heads: Mapping[Address, int] = field(default_factory=dict)


@dataclass(frozen=True)
class HeadRule:
    """From what the number of a layer's heads follows: it is the same in all models of a kind (`count`), or that of
    channels per head is (`channels`; 0: a norm of each head's queries tells it)."""

    count: int = 0
    channels: int = 0

    @property
    def by_norm(self) -> bool:
        return not self.count and not self.channels

    def of(self, name: str, tensors: Shapes) -> int | None:
        """How many heads the layer has whose tensor is called so; None when that can't be told."""
        width = _width(tensors[name])
        if width is None or self.count:
            return self.count or None
        stem = name.removesuffix(".weight").rpartition(".")[0]
        norms = [tensors[norm] for norm in (f"{stem}.{each}" for each in QUERY_NORMS) if norm in tensors]
        channels = self.channels or (norms[0][0] if norms and len(norms[0]) == 1 else 0)
        # Some norms are as wide as all heads together. One head leaves no choice.
        return width // channels if channels and width % channels == 0 and width > channels else None


# Of a head's queries, beside the tensors that HeadRule starts at.
QUERY_NORMS = ("norm.query_norm.scale", "norm.query_norm.weight", "q_norm.weight", "norm_q.weight", "ln_q.weight")


def _width(shape: Sequence[int]) -> int | None:
    """The channels of all heads, of a projection to queries or to queries, keys and values; None where a file packs
    its tensors, or keys have fewer heads."""
    if len(shape) != 2 or shape[0] not in (shape[1], 3 * shape[1]):
        return None
    return shape[1]


@dataclass(frozen=True)
class Kind:
    """How to know a kind of model.

    `layers`: for each part, in the model's order, the name of a tensor that each of its self-attention layers has once.
    Its groups are the block's number and then what orders the layers inside the block; an empty group is 0. `mark`: a
    tensor that tells the kind from those further down in the list, with its last dimension if the name is not enough.
    `heads`: how many heads a layer has.
    """

    name: str
    layers: tuple[tuple[str, str], ...]
    mark: str = ""
    size: int | None = None
    heads: HeadRule | None = HeadRule()

    def contents(self, tensors: Shapes) -> Contents:
        """The model with these tensors; without layers when it isn't of this kind."""
        if self.mark and not any(self.size in (None, *tensors[name][-1:]) for name, _ in _found(self.mark, tensors)):
            return Contents(self.name, ())
        layers = dict(pair for part, pattern in self.layers for pair in _numbered(part, pattern, tensors))
        return Contents(self.name, tuple(layers), self._head_counts(layers, tensors))

    def _head_counts(self, layers: Mapping[Address, str], tensors: Shapes) -> dict[Address, int]:
        if self.heads is None:
            return {}
        counts = {address: self.heads.of(name, tensors) for address, name in layers.items()}
        known = {address: count for address, count in counts.items() if count}
        # A transformer's layers all have one number of heads: Flux's single blocks that of its double ones.
        return dict.fromkeys(layers, next(iter(known.values()))) if known and self.heads.by_norm else known


def _found(pattern: str, names: Iterable[str]) -> list[tuple[str, re.Match[str]]]:
    compiled = re.compile(PREFIX + pattern)
    return [(name, match) for name in names if (match := compiled.fullmatch(name))]


def _numbered(part: str, pattern: str, names: Iterable[str]) -> list[tuple[Address, str]]:
    """The layers of a part, and their tensors' names: those of a block are numbered from 0, in the order of the
    tensors' own numbers."""
    places = [
        ([int(each or 0) for each in match.groups() if each is not None], name)
        for name, match in _found(pattern, names)
    ]
    found: list[tuple[Address, str]] = []
    for (block, *_), name in sorted(places):
        before = found[-1][0] if found and found[-1][0].block == block else None
        found.append((Address(part, block, before.layer + 1 if before else 0), name))
    return found


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
# SD1.5 has eight heads at every width, the later ones 64 channels in each (the models' own configurations, num_heads
# and num_head_channels).
EIGHT, OF_64 = HeadRule(count=8), HeadRule(channels=64)
# attn2: a second attention of SD3.5, over the image alone.
SD3 = (("joint", r"joint_blocks\.(\d+)\.x_block\.attn(2?)\.qkv\.weight"),)
# Nunchaku's files, with qweight, and diffusers' have the same names otherwise.
LUMINA = (("layer", r"layers\.(\d+)\.attention\.(?:qkv|to_qkv|to_q)\.q?weight"),)
QWEN = r"transformer_blocks\.(\d+)\.attn\.(?:to_q|to_qkv)\.q?weight"

KINDS = (
    Kind("SDXL refiner", UNET, UNET_TEXT, 1280, heads=OF_64),
    Kind("SDXL", UNET, UNET_TEXT, 2048, heads=OF_64),
    Kind("SD2", UNET, UNET_TEXT, 1024, heads=OF_64),
    Kind("SD1.5", UNET, UNET_TEXT, 768, heads=EIGHT),
    Kind("UNet", UNET, heads=None),
    Kind("Chroma", FLUX, r"distilled_guidance_layer\.in_proj\.weight"),
    Kind("Flux.2", FLUX, r"double_stream_modulation_img\.lin\.weight"),
    Kind("Flux", FLUX),
    Kind("Flux", FLUX_DIFFUSERS, r"single_transformer_blocks\.0\.attn\.to_q\.weight"),
    Kind("SD3", SD3, heads=OF_64),
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
        found = kind.contents(tensors)
        if found.addresses:
            return found
    return None
