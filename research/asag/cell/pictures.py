"""What is kept of each picture of the decisive cell, and its metrics with paired errors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asag.lab.renderings.judge import Judge, verdict
from research.asag.cell.network import Network
from research.asag.descriptions import looks
from research.asag.metrics import Estimate, Frechet, Kernel, blocks_of, diversity, mean

TITLES = {
    "fd": "FD, judge ↓",
    "kid": "KID · 1000, judge ↓",
    "fd_network": "FD, other network ↓",
    "kid_network": "KID · 1000, other network ↓",
    "name_right": "named right ↑",
    "group_right": "group right ↑",
    "diversity": "diversity",
    "contrast": "contrast",
    "saturation": "saturation",
    "clipped": "clipped",
    "moved": "moved from CFG's",
}
_KERNEL_ROWS = 4000
COMPONENTS = 256  # of the other network's features, in which the Fréchet distance is taken


@torch.no_grad()
def describe(
    images: Tensor, judge: Judge, network: Network | None, asked: Sequence[str] = (), among: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Of pictures (B,3,64,64) in [-1,1]: features (B,256) of the judge; network (B,F), of the other network; layout,
    contrast, saturation and clipped as in descriptions.looks; where pictures were `asked` for, name_right and
    group_right (B,): whether it is the asked one of the names `among`, and of its group. All are on the CPU; what is
    computed is on the judge's device."""
    images = images.to(judge.device)
    found = looks(images) | {"features": torch.cat([judge.features(part) for part in images.split(128)])}
    if network is not None:
        found["network"] = network.features(images)
    if asked:
        said = verdict(judge, images, asked, among)
        found |= {"name_right": said.name.float(), "group_right": said.group.float()}
    return {name: each.cpu() for name, each in found.items()}


def principal(features: Tensor, count: int = COMPONENTS) -> Tensor:
    """(F,count) float64: the directions in which features (N,F) vary most. All 2048 of an Inception would make a set of
    thousands of pictures too small for a Fréchet distance, and its errors take an hour."""
    _, vectors = torch.linalg.eigh(torch.cov(features.double().T))
    found: Tensor = vectors[:, -count:]
    return found


class Distances:
    """Metrics of a run's pictures, against the descriptions of real renderings. Those of the other network, which has
    many features, are computed on `device`; all in float64."""

    def __init__(self, reference: dict[str, Tensor], device: torch.device = torch.device("cpu")) -> None:  # noqa: B008
        self.frechet = {"features": Frechet(reference["features"])}
        self.kernel = {"features": Kernel(reference["features"][:_KERNEL_ROWS])}
        self.directions: Tensor | None = None
        if "network" in reference:
            self.directions = principal(reference["network"].to(device)).cpu()
            self.frechet["network"] = Frechet(reference["network"].double() @ self.directions)
            self.kernel["network"] = Kernel(reference["network"][:_KERNEL_ROWS].to(device))

    def __call__(self, described: dict[str, Tensor], plain: dict[str, Tensor], seeds: int) -> dict[str, Estimate]:
        """Estimates by name, seed by seed, each seed's pictures in the order of the captions; `plain` are CFG's."""
        block = blocks_of(len(described["contrast"]) // seeds, seeds)
        found: dict[str, Estimate] = {}
        for kind, frechet in self.frechet.items():
            after, features = "" if kind == "features" else "_network", described[kind]
            found[f"kid{after}"] = self.kernel[kind](features, block)
            if kind == "network" and self.directions is not None:
                features = features.double() @ self.directions
            found[f"fd{after}"] = frechet(features, block)
        for name in ("name_right", "group_right", "contrast", "saturation", "clipped"):
            found[name] = mean(described[name], block)
        if seeds > 1:
            found["diversity"] = diversity(described["layout"], seeds, block)
        found["moved"] = mean((described["layout"] - plain["layout"]).square().mean(1).sqrt(), block)
        return found
