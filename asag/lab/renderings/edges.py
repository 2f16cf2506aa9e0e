"""The lines in a picture, as a ControlNet of renderings sees them, and how well two pictures' lines agree."""

from __future__ import annotations

import torch
import torch.nn.functional as F

STRENGTH = 0.1  # of a line's slope, in values of [-1,1] for each pixel
_SOBEL = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8


def edges(images: torch.Tensor) -> torch.Tensor:
    """Pictures (B,3,H,W) in [-1,1] -> (B,1,H,W) float32: 1 on a line, 0 elsewhere.

    As Canny's (1986), without blur and without hysteresis: each pixel's slope by Sobel in the colour where it is the
    steepest, kept where it is above STRENGTH and no less than both neighbours' across the line.
    """
    kernels = torch.stack([_SOBEL, _SOBEL.T])[:, None].to(images.device)
    padded = F.pad(images.float(), (1, 1, 1, 1), mode="replicate")
    slopes = F.conv2d(padded.flatten(0, 1)[:, None], kernels).unflatten(0, images.shape[:2])
    strength, colour = slopes.square().sum(2).sqrt().max(1, keepdim=True)
    across, along = (slopes[:, :, axis].gather(1, colour).abs() for axis in (0, 1))
    around = F.pad(strength, (1, 1, 1, 1))
    row, column = around[:, :, 1:-1], around[:, :, :, 1:-1]
    # Of two equal neighbours one is kept.
    upright = (strength >= row[..., :-2]) & (strength > row[..., 2:])
    level = (strength >= column[:, :, :-2]) & (strength > column[:, :, 2:])
    found: torch.Tensor = (strength > STRENGTH) & torch.where(across >= along, upright, level)
    return found.float()


def control_picture(images: torch.Tensor) -> torch.Tensor:
    """What the ControlNet is given: the lines as (B,3,H,W) in [0,1], white on black."""
    return edges(images).expand(-1, 3, -1, -1)


def agreement(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """(B,) in [0,1]: the F-score of lines `found` to `wanted`, both (B,1,H,W), of 0 and 1.

    The harmonic mean of the shares of found lines that are within a pixel of a wanted one, and the other way round. 1
    where neither has a line, 0 where one has none.
    """
    precision, recall = _near(found, wanted), _near(wanted, found)
    score = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    empty = (found.flatten(1).sum(1) == 0) & (wanted.flatten(1).sum(1) == 0)
    return torch.where(empty, 1.0, score)


def _near(lines: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The share (B,) of lines within one pixel of the others."""
    close = F.max_pool2d(others, 3, stride=1, padding=1)
    return (lines * close).flatten(1).sum(1) / lines.flatten(1).sum(1).clamp(min=1)
