"""One call of a diffusers denoiser: its arguments, what it gives back, and how its prediction rows are shifted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asag.branch import RowBranch
from asag.guidance import picked_rows, shift_rows
from asag.models.base import TokenGrid, UnsupportedModel
from asag.random_state import RandomState

# The settings that need to know the picture, and at what value they don't.
UNCHANGED = {"contrast: below 1": 1, "rescale: above 0": 0, "every: above 1": 1}


def argument(args: Any, kwargs: dict[str, Any], position: int, *names: str) -> Any:
    """An argument of a denoiser's forward, given by position or by one of its names; None if it isn't there."""
    if position < len(args):
        return args[position]
    return next((kwargs[name] for name in names if name in kwargs), None)


def token_grid_of(args: Any, kwargs: dict[str, Any]) -> TokenGrid:
    """The size of the latent image that a denoiser is called with: its last two dimensions, or in Flux, whose latents
    come packed into tokens, what the position ids of the image span."""
    sample = argument(args, kwargs, 0, "sample", "hidden_states")
    if sample.ndim == 4:
        return TokenGrid((sample.shape[2], sample.shape[3]))
    ids = argument(args, kwargs, 4, "img_ids")
    if ids is None:
        return TokenGrid()
    ids = ids[0] if ids.ndim == 3 else ids
    own = (ids[:, :1] == 0) * ids[:, 1:]  # Kontext's reference image has a 1 there
    height, width = own.amax(dim=0).tolist()  # read once: the host waits for the device
    return TokenGrid((int(height) + 1, int(width) + 1))


def plain_options(kwargs: dict[str, Any]) -> bool:
    """Whether the dictionaries that attention gets hold nothing with rows: what is in them (GLIGEN, SD3's IP-Adapter)
    isn't taken along in a branch."""
    options = [kwargs.get(name) or {} for name in ("cross_attention_kwargs", "joint_attention_kwargs")]
    return all(isinstance(value, (int, float, str, type(None))) for each in options for value in each.values())


def with_rows(output: Any, rows: Tensor) -> Any:
    """A denoiser's output, a tuple or an output object, with another prediction in it."""
    return (rows, *output[1:]) if isinstance(output, tuple) else type(output)(sample=rows)


@dataclass
class Rescaling:
    """`zero` + factor (v - zero) of a prediction v, where `zero` is the one that stands for a grey picture and factor
    is (images, 1, …)."""

    factor: Tensor
    zero: Tensor


@dataclass
class Shift:
    """What a step does to the prediction rows v of its images: v + added (images, …), and then the rescaling."""

    added: Tensor
    rescaling: Rescaling | None = None

    def apply(self, rows: Tensor) -> None:
        images = [row % self.added.shape[0] for row in range(rows.shape[0])]
        shift_rows(rows, self.added, images)
        if self.rescaling is not None:
            factor, zero = self.rescaling.factor, self.rescaling.zero
            rows *= picked_rows(factor, images)
            rows += picked_rows((1 - factor) * zero, images)


def velocity_of_grey(args: Any, kwargs: dict[str, Any], prediction: Tensor, timesteps: int) -> Tensor:
    """x / σ: what a flow-matching transformer, whose x₀ is x - σ v, predicts for a picture of zeros.

    args and kwargs: those of its call, with a timestep of σ `timesteps`. Of x, (images, …), the part of the
    prediction's channels alone: masks and other pictures come after it.
    """
    sample = argument(args, kwargs, 0, "hidden_states")
    axis = 1 if sample.ndim == 4 else -1
    sigma = argument(args, kwargs, 3, "timestep") / timesteps
    picture: Tensor = sample.narrow(axis, 0, prediction.shape[axis]) / sigma.reshape(-1, *[1] * (sample.ndim - 1))
    return picture


class Alphas:
    """A scheduler's ᾱ, on the device of the prediction: copied there once, since the host waits for a copy."""

    def __init__(self) -> None:
        self.source: Tensor | None = None
        self.table = torch.empty(0)

    def of(self, scheduler: Any, device: torch.device) -> Tensor:
        source: Tensor = scheduler.alphas_cumprod
        if source is not self.source or self.table.device != device:
            self.source, self.table = source, source.to(device)
        return self.table


def grey_of(
    scheduler: Any, alphas: Alphas, args: Any, kwargs: dict[str, Any], prediction: Tensor, setting: str
) -> Tensor:
    """What a UNet predicts for a picture of zeros, (images, channels, …), in at least float32.

    args and kwargs: those of its call. The UNet's x is √ᾱ x₀ + √(1-ᾱ) ε in every scheduler: those of sigmas scale it
    to that first. `setting` is what needs it, for the error.

    Raises:
        UnsupportedModel: naming a scheduler that doesn't say its ᾱ.
    """
    kind = prediction_type(scheduler, setting, without_alphas=("sample",))
    if kind == "sample":
        return torch.zeros_like(prediction)
    sample = argument(args, kwargs, 0, "sample")[:, : prediction.shape[1]]
    kept = alpha_of(scheduler, alphas, args, kwargs)
    zero: Tensor = (1.0 if kind == "epsilon" else kept.sqrt()) * sample / (1 - kept).sqrt()
    return zero


def level_of(scheduler: Any, alphas: Alphas, args: Any, kwargs: dict[str, Any]) -> float | Tensor:
    """What δ of a UNet's prediction is, but for its sign, where δ of the noise is 1 (asag.kept_delta): a number, or of
    each image, (images, 1, …). The rest as in grey_of."""
    kind = prediction_type(scheduler, "every: above 1")
    if kind == "epsilon":
        return 1.0
    # At ᾱ = 0 the picture is all noise, and no noise is without size.
    kept = alpha_of(scheduler, alphas, args, kwargs).clamp_min(1e-8)
    level: Tensor = 1 / kept.sqrt() if kind == "v_prediction" else ((1 - kept) / kept).sqrt()
    return level


def prediction_type(scheduler: Any, setting: str, without_alphas: tuple[str, ...] = ()) -> str:
    """What a scheduler takes a UNet's prediction for: epsilon, v_prediction or sample; of those that don't say their
    ᾱ, one of `without_alphas`. Raises as grey_of does."""
    kind: str = scheduler.config.get("prediction_type", "epsilon")
    tells = getattr(scheduler, "alphas_cumprod", None) is not None
    if kind not in (("epsilon", "v_prediction", "sample") if tells else without_alphas):
        raise UnsupportedModel(
            f"{setting} with {type(scheduler).__name__} and its prediction_type {kind}; allowed: "
            f"{UNCHANGED[setting]}, or a scheduler with alphas_cumprod that predicts epsilon, v_prediction or sample"
        )
    return kind


def alpha_of(scheduler: Any, alphas: Alphas, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """ᾱ of a UNet's call, (images or 1, 1, …), in at least float32."""
    sample = argument(args, kwargs, 0, "sample")
    table = alphas.of(scheduler, sample.device)
    timestep = torch.as_tensor(argument(args, kwargs, 1, "timestep"), device=sample.device).reshape(-1)
    # Timesteps of sigmas lie between whole ones. A list of one: by a bare number of the device's the host would wait.
    kept: Tensor = table[timestep.round().long().clamp(0, len(table) - 1)]
    return kept.to(torch.promote_types(sample.dtype, torch.float32)).reshape(-1, *[1] * (sample.ndim - 1))


def picture_of(scheduler: Any, alphas: Alphas, args: Any, kwargs: dict[str, Any], prediction: Tensor) -> Tensor:
    """x₀, (images, channels, …), that the prediction of a UNet stands for, up to its size; the rest as in grey_of."""
    zero = grey_of(scheduler, alphas, args, kwargs, prediction, "contrast: below 1")
    return prediction if scheduler.config.get("prediction_type") == "sample" else zero - prediction


@dataclass
class WholeCall:
    """The arguments of a call for all rows, and the random numbers as they were."""

    args: list[Any]
    kwargs: dict[str, Any]
    random_state: RandomState


@dataclass
class DenoiserCall:
    """What the perturbed pass needs of the host's call: its conditional rows, or the branch that they take in it; or,
    beside code of others, the whole call. With `reuses` there is no such pass: the last δ is used again."""

    args: list[Any]
    kwargs: dict[str, Any]
    cond: slice
    scale: float
    reuses: bool = False
    branch: RowBranch | None = None
    whole: WholeCall | None = None
