"""The judge: a small conv net that names a picture and its group. Its features are those of distances between sets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from asag.lab.renderings.pictures import SIDE
from asag.lab.renderings.shipped import MODEL

FEATURES = 256
_WIDTHS = (3, 32, 64, 128, 256)
_WEIGHTS, _NAMES = "judge.safetensors", "judge.json"


class Judge(nn.Module):
    """images (B,3,64,64) in [-1,1] -> logits (B,names) and (B,groups). `group_of` has each name's group."""

    def __init__(self, group_of: Mapping[str, str]) -> None:
        super().__init__()
        self.group_of = dict(group_of)
        self.names, self.groups = list(group_of), sorted(set(group_of.values()))
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise(_WIDTHS)):
            kernel = 5 if i == 0 else 3
            layers += [nn.Conv2d(before, after, kernel, stride=2, padding=kernel // 2, bias=False)]
            layers += [nn.BatchNorm2d(after), nn.SiLU(), nn.Conv2d(after, after, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(after), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.feature = nn.Linear(_WIDTHS[-1] * (SIDE // 16) ** 2, FEATURES)
        self.name_head = nn.Linear(FEATURES, len(self.names))
        self.group_head = nn.Linear(FEATURES, len(self.groups))

    @property
    def device(self) -> torch.device:
        return self.feature.weight.device

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(B,256): the last hidden layer before its nonlinearity, for distances and as what a picture is."""
        features: torch.Tensor = self.feature(self.body(images).flatten(1))
        return features

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = F.silu(self.features(images))
        return self.name_head(hidden), self.group_head(hidden)


class Verdict(NamedTuple):
    """For each picture, (B,) bool: is it the asked one of all allowed names; is its group the asked one's."""

    name: torch.Tensor
    group: torch.Tensor

    def shares(self) -> dict[str, float]:
        return {"name_right": float(self.name.float().mean()), "group_right": float(self.group.float().mean())}


@torch.no_grad()
def verdict(judge: Judge, images: torch.Tensor, asked: Sequence[str], among: Sequence[str]) -> Verdict:
    """Judges images (B,3,64,64) in [-1,1] against the names asked for; only the names of `among` are allowed. The
    answer is on the judge's device."""
    outputs = [judge(part.to(judge.device)) for part in images.split(128)]
    names, groups = (torch.cat(part) for part in zip(*outputs, strict=True))
    number = {name: row for row, name in enumerate(judge.names)}
    allowed = torch.tensor([number[name] for name in among], device=judge.device)
    named = allowed[names[:, allowed].argmax(1)]
    wanted = torch.tensor([number[name] for name in asked], device=judge.device)
    wanted_groups = [judge.groups.index(judge.group_of[name]) for name in asked]
    return Verdict(named == wanted, groups.argmax(1) == torch.tensor(wanted_groups, device=judge.device))


def save_judge(judge: Judge, folder: Path) -> None:
    """Weights in half precision, names with their groups beside them."""
    half = {name: value.half() if value.is_floating_point() else value for name, value in judge.state_dict().items()}
    save_file({name: value.contiguous() for name, value in half.items()}, folder / _WEIGHTS)
    (folder / _NAMES).write_text(json.dumps(judge.group_of, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def load_judge(folder: Path) -> Judge:
    """The judge in `folder`, or the one that comes with ASAG where there is none.

    In evaluation mode on the CPU, float32.
    """
    folder = folder if (folder / _NAMES).exists() else MODEL
    judge = Judge(json.loads((folder / _NAMES).read_text(encoding="utf-8")))
    judge.load_state_dict(load_file(folder / _WEIGHTS))
    return judge.eval()
