"""From the difference of two predictions to a guided one. Knows tensors only; touches no model.

δ = ε(x, c) - ε̃(x, c), guided = ε + s δ (paper: Eq. 4 and Algorithm 2), in whatever space the model predicts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from asag.precision import at_least_float32

SCHEDULES = ("constant", "linear", "cosine", "bell")


def in_window(call: int, calls: int, start: float, end: float) -> bool:
    """Whether model call `call` of `calls`, counted from 0, is guided: start <= call / calls < end.

    Samplers that choose their own steps make more calls than they announce: all of those count as the last one.
    """
    return start <= min(call, calls - 1) / max(calls, 1) < end


def scheduled_scale(scale: float, schedule: str, call: int, calls: int, start: float, end: float) -> float:
    """The guidance scale at model call `call` of `calls`, in a window of fractions of them: see scale_at."""
    return scale_at(scale, schedule, min(call, calls - 1) / max(calls, 1), calls, start, end)


def scale_at(scale: float, schedule: str, moment: float, calls: int, start: float, end: float) -> float:
    """The guidance scale at a moment of a pass of `calls` model calls, 0 to 1; 0 outside start <= moment < end.

    "constant": scale. "linear": from scale down to 0 at the window's end. "cosine": scale (1 + cos πu) / 2.
    "bell": scale sin² πu, highest in the middle. u is the place in the window, 0 to 1.
    """
    if not start <= moment < end:
        return 0.0
    place = (moment - start) / (end - start)
    if schedule == "linear":
        return scale * (1 - place)
    if schedule == "cosine":
        return scale * (1 + math.cos(math.pi * place)) / 2
    if schedule == "bell":
        # Half a step in, so that the first guided call isn't wasted on a scale of 0.
        middle = place + 0.5 / max(calls * (end - start), 1)
        return scale * math.sin(math.pi * min(middle, 1.0)) ** 2
    return scale


def mean_rows(rows: Tensor, weights: Sequence[Sequence[float]]) -> Tensor:
    """What (rows, …) of images are for each image, (images, …): their mean weighted by w / Σ|w|.

    `weights` has a list for each image with the weight of each of its rows, in the rows' order (composable prompts:
    AND). A weight list that sums to 0 in absolute value counts its rows equally. Of the rows' δ it is the image's δ.
    """
    result, row = [], 0
    for parts in weights:
        total = sum(abs(weight) for weight in parts)
        shares = [weight / total if total else 1 / len(parts) for weight in parts]
        mean = torch.zeros_like(rows[row])
        for index, share in enumerate(shares):
            mean = mean + share * rows[row + index]
        result.append(mean)
        row += len(parts)
    if row != rows.shape[0]:
        raise ValueError(f"weights: {row} rows; allowed: those of the predictions, {rows.shape[0]}")
    return torch.stack(result)


def cfg_push(guided: Tensor, unconditional: Tensor, deviation: Tensor) -> Tensor:
    """CFG's own push, (images, …), in at least float32: how much further the host's guided prediction is from the
    unconditional one than the conditional one is.

    All are (images, …) in one space. `deviation` is the conditional prediction less the unconditional one; with AND the
    `mean_rows` of those of the parts, as for δ. With a single prompt and CFG scale w it is ε_cfg - ε(x, c), that is
    (w - 1) (ε(x, c) - ε(x)). Taken from the unconditional prediction it is the same in all spaces, also where the
    weights of the parts don't sum to 1.
    """
    return at_least_float32(guided) - at_least_float32(unconditional) - at_least_float32(deviation)


def keep_contrast(delta: Tensor, picture: Tensor, kept: float, channels: int = 1) -> Tensor:
    """δ with only `kept` (0 to 1) of what in it is contrast.

    Contrast is what lies along the predicted picture less its mean, image by image and channel by channel: a push
    along it makes stronger what is there and changes nothing else. Adaptive projected guidance takes the part that is
    parallel to the prediction out of CFG's push in the same manner, over whole images (Sadat et al. 2024, arXiv
    2410.02416).

    Args:
        delta: (images, channels, …), or with `channels` -1 (images, tokens, channels).
        picture: of that shape, x₀ as the step predicts it; its sign and size don't matter.
    """
    if kept == 1.0:
        return delta
    own = {0, channels % delta.ndim}
    dimensions = tuple(each for each in range(delta.ndim) if each not in own)
    picture = at_least_float32(picture)
    pattern = picture - picture.mean(dim=dimensions, keepdim=True)
    size = pattern.square().sum(dim=dimensions, keepdim=True).clamp_min(1e-12)
    along = (at_least_float32(delta) * pattern).sum(dim=dimensions, keepdim=True) / size * pattern
    return (delta - (1 - kept) * along).to(delta.dtype)


def shift_rows(rows: Tensor, shift: Tensor, images: Sequence[int]) -> None:
    """The row-shift rule, in place: add shift[i] to every prediction row of image i, conditional or not.

    A combination of rows that looks only at differences, as classifier-free guidance does with any scale, AND
    weights or NGMS, is then shifted by exactly that. rows (rows, …), shift (images, …), images: the image of a row.
    """
    rows += picked_rows(shift, images).to(rows.dtype)


def picked_rows(tensor: Tensor, numbers: Sequence[int]) -> Tensor:
    """A copy of the rows of a tensor (rows, …) with these numbers, in their order.

    By slices of numbers that follow one another: a list as an index is copied to the device, which makes the host wait.
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([number, number + 1])
    return torch.cat([tensor[slice(*run)] for run in runs])


def rescale_factor(reference: Tensor, guided: Tensor, amount: float) -> Tensor:
    """What to multiply each guided image by so that its spread comes back to the reference's (Lin et al. 2023,
    arXiv 2305.08891, Eq. 15 and 16): amount · std(reference) / std(guided) + 1 - amount, shape (images, 1, …)."""
    dimensions = tuple(range(1, guided.ndim))
    reference_std = at_least_float32(reference).std(dim=dimensions, keepdim=True)
    guided_std = at_least_float32(guided).std(dim=dimensions, keepdim=True).clamp_min(1e-12)
    return (amount * reference_std / guided_std + (1 - amount)).to(guided.dtype)


def rms(tensor: Tensor) -> Tensor:
    """The root of the mean square of each image, (images, 1, …), in at least float32."""
    return at_least_float32(tensor).square().mean(dim=tuple(range(1, tensor.ndim)), keepdim=True).sqrt()


class AdaptiveScale:
    """s₀ / (EMA‖δ‖ + ε) per image over the steps of one pass, ‖·‖ the RMS ("When guidance breaks", adaptive λ).

    With it the push has about the size s₀ at every step. δ has to be given in a space in which its size doesn't
    follow σ, that is as a difference of noise or velocity predictions.
    """

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-3) -> None:
        self.momentum = momentum
        self.epsilon = epsilon
        self.average: Tensor | None = None

    def __call__(self, scale: float, delta: Tensor) -> Tensor:
        """The scale of each image, (images, 1, …), after taking in this step's δ (images, …)."""
        size = rms(delta)
        before = self.average
        if before is not None and before.shape[0] == size.shape[0]:
            average = self.momentum * before + (1 - self.momentum) * size
            # A step whose δ is no number is in no average.
            size = torch.where(average.isfinite(), average, torch.where(size.isfinite(), size, before))
        self.average = size
        return (scale / (self.average + self.epsilon)).to(delta.dtype)
