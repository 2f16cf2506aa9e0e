"""Which self-attention blocks a checkpoint file has, from its header alone: what comes later in a run isn't loaded yet.

A safetensors file begins with eight bytes, the length of its header, and the header, JSON with the name of each tensor
(https://github.com/huggingface/safetensors, Format).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from asag.blocks import Address

# The format's own limit.
LONGEST_HEADER = 100_000_000
PARTS = {"input_blocks": "in", "middle_block": "mid", "output_blocks": "out"}
# Of the UNets of SD1.x, SD2 and SDXL; a UNet alone has its tensors without a prefix.
QUERY = re.compile(
    r"(?:model\.diffusion_model\.)?(?:(input_blocks|output_blocks)\.(\d+)|(middle_block))\.(\d+)"
    r"\.transformer_blocks\.(\d+)\.attn1\.to_q\.weight"
)


def unet_addresses(path: Path) -> list[Address]:
    """The self-attention layers of the UNet in a checkpoint, in the order in which it runs them.

    Empty where the file can't be read so, or holds another kind of model.
    """
    found: list[tuple[int, int, int, int]] = []
    for name in tensor_names(path):
        match = QUERY.fullmatch(name)
        if match:
            part = PARTS[match[1] or match[3]]
            found.append((list(PARTS.values()).index(part), int(match[2] or 0), int(match[4]), int(match[5])))
    addresses: list[Address] = []
    for place, block, _, _ in sorted(found):
        name = list(PARTS.values())[place]
        number = sum((name, block) == (each.part, each.block) for each in addresses)
        addresses.append(Address(name, block, number))
    return addresses


def tensor_names(path: Path) -> list[str]:
    """The names of the tensors in a safetensors file; none where it isn't one."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= LONGEST_HEADER else {}
    except (OSError, ValueError, RecursionError):
        return []
    return list(header) if isinstance(header, dict) else []
