"""Renderings as training pictures: on changing plain backgrounds, moved, mirrored and tinted, all on one device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from asag.lab.renderings.names import Rendering

SIDE = 64  # pixels of a training picture
_STORED = 80  # pixels of what is kept of a rendering, so that enlarging stays sharp
_SMALLEST, _LARGEST = 0.88, 1.02  # of a rendering's side, in parts of the picture's
_SHIFT = 0.06  # of the picture's half side, in each direction
_HUE = math.radians(12)
_RANDOM_NUMBERS = 9  # uniform numbers that one picture is made from
# To luma and two axes of colour (YIQ), in which a hue is an angle.
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], dtype=torch.float64)


class Pictures:
    """Renderings in memory as bytes; `draw` makes pictures of them."""

    def __init__(self, renderings: Sequence[Rendering], device: torch.device) -> None:
        stored = np.stack([_stored(rendering) for rendering in renderings])
        self.rgba = torch.from_numpy(stored).to(device).permute(0, 3, 1, 2).contiguous()
        self.mirrors = torch.tensor([rendering.mirrors for rendering in renderings], device=device)
        self._yiq, self._rgb = _YIQ.to(device), _YIQ.inverse().to(device)
        self.tinted = torch.tensor([not rendering.names_colour for rendering in renderings], device=device)

    def draw(self, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """(B,3,64,64) float32 in [-1,1] of the renderings `rows` (B,), augmented by the generator's numbers. Rows and
        generator may be another device's: the CPU's numbers make the same pictures everywhere."""
        rows = rows.to(self.rgba.device)
        u = torch.rand(len(rows), _RANDOM_NUMBERS, generator=generator, device=generator.device).to(rows.device)
        mirrored = self.mirrors[rows] & (u[:, 0] < 0.5)
        size = _SMALLEST + (_LARGEST - _SMALLEST) * u[:, 1]
        angle = torch.where(self.tinted[rows], _HUE * (2 * u[:, 4] - 1), 0.0)
        moved = _moved(self.rgba[rows].float() / 255, mirrored, size, _SHIFT * (2 * u[:, 2:4] - 1))
        return _composed(self._turned(moved, angle), background(u[:, 5:9]))

    def plain(self, rows: torch.Tensor, value: float = 0.9) -> torch.Tensor:
        """(B,3,64,64) float32 in [-1,1] of the renderings `rows` (B,) as they are, on one grey."""
        count, device = len(rows), self.rgba.device
        none = torch.zeros(count, device=device)
        rgba = _moved(self.rgba[rows].float() / 255, none > 0, none + 1, none[:, None].expand(-1, 2))
        return _composed(rgba, (none + value)[:, None].expand(-1, 3))

    def _turned(self, rgba: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
        """The hue turned by angles (B,), luma kept."""
        turn = torch.zeros(len(angle), 3, 3, dtype=torch.float64, device=rgba.device)
        turn[:, 0, 0] = 1
        turn[:, 1, 1] = turn[:, 2, 2] = angle.cos().double()
        turn[:, 1, 2], turn[:, 2, 1] = -angle.sin().double(), angle.sin().double()
        colours = torch.einsum("bij,bjhw->bihw", (self._rgb @ turn @ self._yiq).float(), rgba[:, :3])
        alpha = rgba[:, 3:]
        return torch.cat([torch.minimum(colours.clamp(min=0), alpha), alpha], 1)


def background(u: torch.Tensor) -> torch.Tensor:
    """Uniform numbers (B,4) -> colours (B,3) in [0.2,0.95]: half a random grey, half a random colour."""
    return 0.2 + 0.75 * (u[:, :1] + u[:, 1:]) / 2


def _stored(rendering: Rendering) -> np.ndarray:
    """(80,80,4) uint8, the colours multiplied by the opacity: what lies between pixels is then their mean."""
    with Image.open(rendering.path) as file:
        picture = file.convert("RGBA").convert("RGBa")
    return np.asarray(picture.resize((_STORED, _STORED), Image.Resampling.BOX, reducing_gap=None))


def _moved(rgba: torch.Tensor, mirrored: torch.Tensor, size: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """rgba (B,4,80,80) -> (B,4,64,64), transparent where the rendering doesn't reach."""
    matrix = torch.zeros(len(rgba), 2, 3, device=rgba.device)
    matrix[:, 0, 0] = torch.where(mirrored, -1.0, 1.0) / size
    matrix[:, 1, 1] = 1 / size
    matrix[:, :, 2] = shift
    grid = F.affine_grid(matrix, [len(rgba), 4, SIDE, SIDE], align_corners=False)
    return F.grid_sample(rgba, grid, align_corners=False)


def _composed(rgba: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
    """Over plain backgrounds (B,3) in [0,1]: (B,3,64,64) in [-1,1]."""
    return (rgba[:, :3] + (1 - rgba[:, 3:]) * colour[:, :, None, None]) * 2 - 1
