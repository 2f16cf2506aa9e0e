"""AUTOMATIC1111 1.10: one guided generation, driven by the CFG denoiser's callbacks.

Source: modules/sd_samplers_cfg_denoiser.py. In a step the `cfg_denoiser` callback comes first, then `inner_model` runs
on all rows, in one call or several, then comes the `cfg_denoised` callback, in which edits of `params.x` in place
count. Exceptions in callbacks are logged and swallowed by the host; those out of `p.sample` end the request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from modules import sd_unet, shared
from modules.hypernetworks import hypernetwork
from modules.sd_samplers_timesteps import CompVisTimestepsDenoiser, CompVisTimestepsVDenoiser
from torch import Tensor, nn

from asag.blocks import BlocksError
from asag.guidance import AdaptiveScale, mean_delta, rescale_factor, scheduled_scale, shift_rows
from asag.hosts.conflicts import conflict
from asag.models.base import Scene
from asag.models.ldm_unet import LdmUnet
from asag.operators import make_operator
from asag.perturb import choose_layers, perturbed, slice_rows
from asag.settings import AsagSettings

logger = logging.getLogger(__name__)

RUN = "_asag_run"
FAMILY = LdmUnet(lambda context: hypernetwork.apply_hypernetworks(shared.loaded_hypernetworks, context))


class Refused(RuntimeError):
    """Ends the request with a message for the user; the host's API answers with `status_code`."""

    def __init__(self, message: str, status_code: int) -> None:
        super().__init__(message)
        self.detail = message
        self.status_code = status_code


class Step:
    """What `inner_model` was given in one denoiser step: the rows of x_out in order, over one call or several."""

    def __init__(self, inner_model: nn.Module, scale: float, blocks: str, cond_rows: int, images: int) -> None:
        self.inner_model = inner_model
        self.scale = scale
        self.blocks = blocks
        self.cond_rows = cond_rows
        self.images = images
        self.calls: list[tuple[Tensor, Tensor, Any]] = []
        self._hook = inner_model.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls.append((args[0], args[1], kwargs["cond"]))

    def remove(self) -> None:
        """Stop recording."""
        self._hook.remove()

    @property
    def recorded_rows(self) -> int:
        return sum(x.shape[0] for x, _, _ in self.calls)

    def predict_cond_rows(self) -> Tensor:
        """The conditional rows once more, in the host's own batches: (cond_rows, channels, height, width)."""
        out, done = [], 0
        for x, sigma, cond in self.calls:
            rows = slice(0, min(x.shape[0], self.cond_rows - done))
            if rows.stop <= 0:
                break
            out.append(self.inner_model(x[rows], sigma[rows], cond=slice_rows(cond, rows, x.shape[0])))
            done += rows.stop
        return torch.cat(out)


class GuidedRun:
    """The guidance of one generation (one `p`): all its state, from its first step to its last."""

    def __init__(self, settings: AsagSettings) -> None:
        self.settings = settings
        self.operator = make_operator(settings.method, settings.iterations, settings.strength)
        self.adaptive = AdaptiveScale()
        self.guided_calls = 0
        self.aside: str | None = None
        self.error: Exception | None = None
        self.step: Step | None = None
        self.barrier: Any = None

    def on_cfg_denoiser(self, params: Any) -> None:
        """Before the host's pass: decide whether this step is guided, and if so record what the model is given."""
        self.close()
        denoiser = params.denoiser
        if self.error is not None:
            self.barrier = denoiser.inner_model.register_forward_pre_hook(self._stop)
            return
        if denoiser.step == 0:
            self.adaptive = AdaptiveScale()
        if self.stands_aside(denoiser.p):
            return
        chosen = self.settings
        base, blocks = chosen.in_pass(getattr(denoiser.p, "is_hr_pass", False))
        scale = scheduled_scale(base, chosen.schedule, denoiser.step, denoiser.total_steps, chosen.start, chosen.end)
        if scale:
            rows = rows_of(params.text_cond), rows_of(params.text_uncond)
            self.step = Step(denoiser.inner_model, scale, blocks, *rows)

    def _stop(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """The host swallows what a callback raises, but not what a hook inside the model raises."""
        raise self.error

    def stands_aside(self, p: Any) -> bool:
        """Whether an extension is active that a further pass would confuse; says so once, in the log and the result."""
        if self.aside is None:
            self.aside = conflict(p.scripts.alwayson_scripts if p.scripts else []) or ""
            if self.aside:
                message = f"ASAG was off for this image: it can't run beside {self.aside}"
                logger.warning(message)
                p.comment(message)
        return bool(self.aside)

    def on_cfg_denoised(self, params: Any, denoiser: Any) -> None:
        """After the host's pass: the perturbed pass on the conditional rows, and the row shift, in place."""
        step, self.step = self.step, None
        if step is None:
            return
        step.remove()
        try:
            self._guide(params.x, step, denoiser)
            self.guided_calls += 1
        except Refused as error:
            self.error = error
            raise
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            self.error = Refused(f"ASAG: the perturbed pass failed: {type(error).__name__}: {reason}", 500)
            raise self.error from error

    def _guide(self, rows: Tensor, step: Step, denoiser: Any) -> None:
        weights = [[part.weight for part in parts] for parts in denoiser.sampler.sampler_extra_args["cond"].batch]
        if sum(map(len, weights)) != step.cond_rows or step.recorded_rows < step.cond_rows:
            raise Refused(
                f"ASAG: {step.cond_rows} conditional rows of {step.recorded_rows} run, {weights} expected; another "
                "extension changed what the model is given, and ASAG can't guide that",
                500,
            )
        model = unet()
        layers = choose_layers(model, FAMILY, step.blocks)
        scene = Scene(latent_size=tuple(rows.shape[-2:]))
        with perturbed(layers, FAMILY, self.operator, scene):
            perturbed_rows = step.predict_cond_rows()
        delta = mean_delta(rows[: step.cond_rows], perturbed_rows, weights)
        shift = delta * (self._adapted(step, delta) if self.settings.adaptive else step.scale)
        # Conditional rows image by image, then a block of one row per image: uncond, or two with InstructPix2Pix.
        images = [image for image, parts in enumerate(weights) for _ in parts]
        images += list(range(step.images)) * ((rows.shape[0] - step.cond_rows) // step.images)
        reference = rows[[images.index(image) for image in range(step.images)]].clone()
        shift_rows(rows, shift, images)
        if self.settings.rescale:
            guided = self._combined(rows, weights, step, denoiser)
            factor = rescale_factor(reference, guided, self.settings.rescale)
            rows *= factor[images]

    def _adapted(self, step: Step, delta: Tensor) -> Tensor:
        """The adaptive scale: δ of a denoised picture is σ times that of the noise, which DDIM and the like give."""
        sigma = step.calls[0][1][0]
        return self.adaptive(step.scale, delta if is_timestep_sampler(step.inner_model) else delta / sigma)

    def _combined(self, rows: Tensor, weights: list[list[float]], step: Step, denoiser: Any) -> Tensor:
        """What the host will make of the rows, (images, …): rows scaled by a factor give it scaled by the factor."""
        scale = denoiser.sampler.sampler_extra_args["cond_scale"] * denoiser.cond_scale_miltiplier
        if step.recorded_rows == step.cond_rows:
            scale = 1.0
        if rows.shape[0] - step.cond_rows > step.images:
            return denoiser.combine_denoised_for_edit_model(rows, scale)
        indices = iter(range(step.cond_rows))
        conds_list = [[(next(indices), weight) for weight in parts] for parts in weights]
        return denoiser.combine_denoised(rows, conds_list, rows[-step.images :], scale)

    def close(self) -> None:
        """Take the hooks out of the model; harmless when there are none."""
        for hook in (self.step, self.barrier):
            if hook is not None:
                hook.remove()
        self.step = self.barrier = None


def is_timestep_sampler(inner_model: nn.Module) -> bool:
    """Whether `inner_model` predicts noise at integer timesteps (modules/sd_samplers_timesteps.py: DDIM, PLMS, UniPC)
    rather than a denoised picture at a sigma."""
    return isinstance(inner_model, (CompVisTimestepsDenoiser, CompVisTimestepsVDenoiser))


def rows_of(cond: Any) -> int:
    """The number of rows of a text conditioning: a tensor, or SDXL's dict of tensors."""
    return (cond["crossattn"] if isinstance(cond, dict) else cond).shape[0]


def unet() -> nn.Module:
    """The UNet that the host is running now: refiner and checkpoint switches replace it in the middle of a run."""
    if sd_unet.current_unet is not None:
        raise Refused("ASAG can't guide an accelerated UNet (TensorRT and the like): set SD Unet to None", 422)
    return shared.sd_model.model.diffusion_model


def check_blocks(run: GuidedRun) -> None:
    """Raise Refused before sampling when the model has no such blocks, or isn't of a family that can be perturbed."""
    model = unet()
    if not FAMILY.matches(model):
        raise Refused(f"ASAG can't guide a {type(model).__name__}; allowed: {FAMILY.name}", 422)
    try:
        for hires in (False, True):
            choose_layers(model, FAMILY, run.settings.in_pass(hires)[1])
    except BlocksError as error:
        raise Refused(f"ASAG settings: {'hires_' if hires else ''}blocks: {error}", 422) from error


def arm(p: Any, settings: AsagSettings, finished: Callable[[], None]) -> None:
    """Guide what `p.sample` generates. `finished` is called after each batch that was guided to its end.

    The wrapper around `p.sample` is where the host lets errors through, and where cleaning up is certain.
    """
    run = GuidedRun(settings)

    def guarded(sample: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        try:
            check_blocks(run)
            out = sample(*args, **kwargs)
        finally:
            run.close()
        if run.error is not None:
            raise run.error
        if run.guided_calls:
            finished()
        return out

    _wrap_sample(p, guarded)
    setattr(p, RUN, run)


def refuse(p: Any, error: Exception) -> None:
    """Let `p.sample` end the request with `error`, as the client's mistake."""

    def refused(sample: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        raise Refused(str(error), 422) from error

    _wrap_sample(p, refused)


def disarm(p: Any) -> None:
    """Undo `arm` and `refuse`; harmless when neither was called."""
    run = p.__dict__.pop(RUN, None)
    if run is not None:
        run.close()
    if hasattr(p.__dict__.get("sample"), "asag"):
        del p.__dict__["sample"]


def _wrap_sample(p: Any, around: Callable[..., Tensor]) -> None:
    sample = p.sample

    def wrapped(*args: Any, **kwargs: Any) -> Tensor:
        return around(sample, *args, **kwargs)

    wrapped.asag = True
    p.sample = wrapped


class Callbacks:
    """The two callbacks that the host calls for every generation; each finds its run on the denoiser's `p`."""

    def __init__(self) -> None:
        self.denoiser: Any = None

    def cfg_denoiser(self, params: Any) -> None:
        run = getattr(params.denoiser.p, RUN, None)
        self.denoiser = None if run is None else params.denoiser
        if run is not None:
            run.on_cfg_denoiser(params)

    def cfg_denoised(self, params: Any) -> None:
        denoiser, self.denoiser = self.denoiser, None
        if denoiser is not None:
            getattr(denoiser.p, RUN).on_cfg_denoised(params, denoiser)
