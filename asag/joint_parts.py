"""The parts of joint attention, of text and image tokens together, that every operator leaves as they are."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def text_attending(query: Tensor, key: Tensor, value: Tensor, image: slice, mask: Tensor | None) -> Tensor:
    """SoftMax attention of the text queries, before and after `image`; the rows of image queries aren't filled."""
    out = query.new_empty(*query.shape[:3], value.shape[3])
    for rows in (slice(0, image.start), slice(image.stop, query.shape[2])):
        if rows.start < rows.stop:
            own_mask = mask if mask is None or mask.shape[2] == 1 else mask[:, :, rows]
            out[:, :, rows] = F.scaled_dot_product_attention(query[:, :, rows], key, value, attn_mask=own_mask)
    return out


class MaskCheck:
    """Whether the masks of a run leave image tokens visible to one another.

    Looking makes an accelerator's host wait, so there the first mask of a kind (its shape, dtype and image tokens) is
    looked at and stands for the others: prompts differ in the text that they hide, the image is up to the model.
    """

    def __init__(self) -> None:
        self.looked_at: set[tuple[object, ...]] = set()

    def image_rows(self, mask: Tensor | None, image: slice) -> Tensor | None:
        """The rows of an attention mask (…, …, queries or 1, keys) that hold for image queries; None where none is.

        Raises ValueError when it hides image tokens from one another: a plan over them couldn't keep to that.
        """
        if mask is None:
            return None
        rows = mask if mask.shape[2] == 1 else mask[:, :, image]
        kind = (mask.shape, mask.dtype, mask.device, image.start, image.stop)
        if mask.device.type == "cpu" or kind not in self.looked_at:
            among = rows[..., image]
            if not bool(among.all() if mask.dtype == torch.bool else not among.any()):
                raise ValueError("mask: hides image tokens from one another; allowed: a mask over text tokens")
            self.looked_at.add(kind)
        return rows


def text_of(tensor: Tensor, image: slice, axis: int) -> Tensor:
    """What lies before and after the image tokens of an axis. By slices: a mask as an index makes a GPU's host wait."""
    before = tensor.narrow(axis, 0, image.start)
    after = tensor.narrow(axis, image.stop, tensor.shape[axis] - image.stop)
    if not before.shape[axis]:
        return after
    return torch.cat([before, after], dim=axis) if after.shape[axis] else before


def text_bias_of(mask: Tensor | None, image: slice, like: Tensor) -> Tensor | None:
    """What a mask's rows for image queries add to the logits of the text keys, (…, …, image queries, text keys)."""
    if mask is None:
        return None
    text_mask = text_of(mask, image, 3)
    if mask.dtype == torch.bool:
        text_mask = torch.zeros_like(text_mask, dtype=like.dtype).masked_fill_(~text_mask, -math.inf)
    return text_mask.to(like.dtype).expand(-1, -1, image.stop - image.start, -1)
