"""The matrices of a small checkpoint as quantised checkpoints have them; for tiny_checkpoint.py.

GGML's formats are written from its description of their blocks (ggml-quants.h), NF4 by bitsandbytes.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def is_matrix(key: str, tensor: Tensor) -> bool:
    """Whether it is one that quantised checkpoints quantise."""
    return key.startswith("model.diffusion_model.") and tensor.ndim == 2 and tensor.shape[1] % 32 == 0


def stored_as(stored: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The denoiser's matrices in that format, "fp8" or "nf4", and the rest as it is."""
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if not is_matrix(key, tensor):
            found[key] = tensor
        elif stored == "fp8":
            found[key] = tensor.to(torch.float8_e4m3fn)
        else:
            found |= nf4(key, tensor)
    return found


def nf4(key: str, matrix: Tensor) -> dict[str, Tensor]:
    functional = import_module("bitsandbytes.functional")
    packed, state = functional.quantize_4bit(matrix, blocksize=64, quant_type="nf4", compress_statistics=False)
    return {key: packed, **{f"{key}.{name}": value for name, value in state.as_dict(packed=True).items()}}


def write_gguf(tensors: dict[str, Tensor], file: Path, sizes: str, stored: str) -> Path:
    """Matrices as Q8_0 ("q8"), or as Q4_K ("q4") where whole blocks of 256 fit their rows."""
    gguf: Any = import_module("modules_forge.packages.gguf" if find_spec("modules_forge.packages") else "gguf")
    kinds = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(file, "asag-tiny")
    writer.add_string("asag_sizes", sizes)
    for key, tensor in tensors.items():
        if is_matrix(key, tensor) and stored == "q4" and tensor.shape[1] % 256 == 0:
            writer.add_tensor(key, q4_k(tensor), raw_dtype=kinds.Q4_K)
        elif is_matrix(key, tensor):
            writer.add_tensor(key, q8_0(tensor), raw_dtype=kinds.Q8_0)
        elif tensor.ndim:
            writer.add_tensor(key, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def q8_0(matrix: Tensor) -> np.ndarray:
    """GGML's Q8_0, uint8 (rows, bytes): for each 32 numbers a half-precision scale, and the numbers over it as int8."""
    blocks = matrix.float().unflatten(1, (-1, 32))
    scale = (blocks.abs().amax(-1, keepdim=True) / 127).half()
    rounded = (blocks / scale.float().clamp(min=1e-8)).round().to(torch.int8)
    return torch.cat([scale.view(torch.uint8), rounded.view(torch.uint8)], dim=-1).flatten(1).numpy()


def q4_k(matrix: Tensor) -> np.ndarray:
    """GGML's Q4_K, uint8 (rows, bytes). For each 256 numbers: two half-precision factors, for each 32 of them a scale
    and a minimum of 6 bits, and the numbers of 4 bits: factor · scale · number − other factor · minimum."""
    blocks = matrix.float().unflatten(1, (-1, 8, 32))
    least = (-blocks.amin(-1)).clamp(min=0)
    step = (blocks.amax(-1) + least) / 15
    factors = [(each.amax(-1, keepdim=True) / 63).half() for each in (step, least)]
    whole = [
        (each / factor.float().clamp(min=1e-8)).round().clamp(0, 63)
        for each, factor in zip((step, least), factors, strict=True)
    ]
    unit, offset = (each * factor.float() for each, factor in zip(whole, factors, strict=True))
    numbers = ((blocks + offset[..., None]) / unit[..., None].clamp(min=1e-8)).round().clamp(0, 15).to(torch.uint8)
    scale, minimum = (each.to(torch.uint8) for each in whole)
    # Of the last four their two highest bits lie above the first four's six.
    high = [each[..., :4] | (each[..., 4:] >> 4 << 6) for each in (scale, minimum)]
    low = (scale[..., 4:] & 15) | ((minimum[..., 4:] & 15) << 4)
    pairs = (numbers[..., 0::2, :] | (numbers[..., 1::2, :] << 4)).flatten(-2)
    parts = [*(factor.view(torch.uint8) for factor in factors), *high, low, pairs]
    return torch.cat(parts, dim=-1).flatten(1).numpy()
