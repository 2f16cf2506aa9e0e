"""Flux (dev, schnell, Kontext), Flux.2 Klein and Chroma as Forge and Neo run them.

Sources: backend/nn/flux.py and backend/nn/chroma.py (DoubleStreamBlock, SingleStreamBlock): text tokens come first,
then the image's, then those of reference images. Reference images are kept like text: they aren't what is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from asag.models.base import AttentionLayer, HostModel, has_class
from asag.models.host_attention import HostTransformer, numbered


class ForgeFlux(HostTransformer):
    """double.N is double_blocks[N], single.N is single_blocks[N]."""

    name = "Flux and Chroma (Forge, Neo)"
    kinds: tuple[str, ...] = ("Flux", "Flux.2", "Chroma")
    reason = "the middle of the network, with double and single blocks counted together"
    homes = (("backend.nn.flux", "attention_function"),)

    def matches(self, model: HostModel) -> bool:
        return any(
            has_class(model, name)
            for name in ("IntegratedFluxTransformer2DModel", "IntegratedChromaTransformer2DModel")
        )

    def layers(self, model: HostModel) -> Sequence[AttentionLayer]:
        # Forge's models have no patch_size of their own: 2, as in backend/nn/flux.py's forward.
        patch = getattr(model, "patch_size", 2)
        return [
            *numbered("double", model.double_blocks, patch=patch),
            *numbered("single", model.single_blocks, patch=patch),
        ]

    def stages(self, model: HostModel) -> list[nn.Module]:
        return [*model.double_blocks, *model.single_blocks, model.final_layer]
