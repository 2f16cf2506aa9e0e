"""Which diffusers models can be guided: the denoiser of a pipeline, and the module that really runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from asag.hosts.diffusers_other_code import caches
from asag.models.base import Family, UnsupportedModel, has_class
from asag.models.diffusers_mmdit import FluxTransformer, Sd3Transformer
from asag.models.diffusers_unet import DiffusersUnet

FAMILIES: Sequence[Family] = (DiffusersUnet(), Sd3Transformer(), FluxTransformer())


def denoiser_of(pipe: Any) -> nn.Module:
    """The UNet or transformer of a classic pipeline; raises UnsupportedModel naming a pipeline that can't be guided."""
    name = type(pipe).__name__
    if has_class(pipe, "ModularPipeline"):
        raise UnsupportedModel(f"pipe: {name} is modular; allowed: its guider AdversarialSinkhornAttentionGuidance")
    if has_class(pipe, "PAGMixin"):
        raise UnsupportedModel(f"pipe: {name} perturbs attention itself; allowed: the pipeline without PAG")
    for part in ("unet", "transformer"):
        denoiser = getattr(pipe, part, None)
        if isinstance(denoiser, nn.Module):
            return denoiser
    raise UnsupportedModel(f"pipe: {name} has no unet and no transformer; allowed: a classic diffusers pipeline")


def eager(denoiser: nn.Module) -> nn.Module:
    """The denoiser itself, or the module that torch.compile(denoiser) was given.

    Raises UnsupportedModel where attention can't be replaced: compiled in place, or with a cache of what layers gave.
    """
    model = getattr(denoiser, "_orig_mod", denoiser)
    if any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules()):
        raise UnsupportedModel(
            f"model: {type(model).__name__} is compiled in place, by compile() or compile_repeated_blocks(); allowed: "
            "torch.compile(model), whose result leaves the model as it is, or no compilation"
        )
    cached = caches(model)
    if cached or getattr(model, "is_cache_enabled", False):
        raise UnsupportedModel(
            f"model: {type(model).__name__} reuses outputs of blocks {cached}; allowed: disable_cache() first, or a "
            "model without such hooks"
        )
    return model
