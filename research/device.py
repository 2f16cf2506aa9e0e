"""Where a command computes: the CPU, or a GPU with --device cuda."""

from __future__ import annotations

import argparse

import torch

from asag.precision import float32_setting


def device_of(args: argparse.Namespace) -> torch.device:
    """The device of `args`, with the CPU's threads set; ends the command where there is no such device.

    All is float32. A GPU rounds the factors of its products to TF32, as PyTorch lets it in convolutions anyway; where
    ASAG computes potentials and plans, it keeps all bits by itself.
    """
    torch.set_num_threads(args.threads)
    if args.device == "cuda":
        if not torch.cuda.is_available():
            args.error("--device: cuda, but PyTorch finds no GPU; allowed: cpu")
        name, _ = float32_setting(torch.backends.cuda.matmul)
        setattr(torch.backends.cuda.matmul, name, "tf32" if name == "fp32_precision" else True)
        torch.backends.cudnn.benchmark = True
    return torch.device(args.device)
