"""AUTOMATIC1111 1.10: one guided generation, driven by the CFG denoiser's callbacks.

Source: modules/sd_samplers_cfg_denoiser.py. In a step the `cfg_denoiser` callback comes first, then `inner_model` runs
on all rows, in one call or several, then comes the `cfg_denoised` callback, in which edits of `params.x` in place
count. Exceptions in callbacks are logged and swallowed by the host; those out of `p.sample` end the request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from asag.blocks import BlocksError
from asag.guidance import AdaptiveScale, mean_delta, rescale_factor, scheduled_scale, shift_rows
from asag.hosts.a1111_model import FAMILY, Refused, fixes_rows, is_timestep_sampler, rows_of, unet
from asag.hosts.a1111_step import Step
from asag.hosts.conflicts import conflict
from asag.models.base import Scene
from asag.perturb import choose_layers, perturbed
from asag.settings import AsagSettings, SettingsError

logger = logging.getLogger(__name__)

RUN = "_asag_run"


class GuidedRun:
    """The guidance of one generation (one `p`): all its state, from its first step to its last."""

    def __init__(self, settings: AsagSettings) -> None:
        self.settings = settings
        self.operator = settings.operator()
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
            self.step = Step(denoiser, scale, blocks, *rows)

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

    def on_cfg_denoised(self, params: Any) -> None:
        """After the host's pass: the perturbed pass on the conditional rows, and the row shift, in place."""
        step, self.step = self.step, None
        if step is None:
            return
        step.remove()
        try:
            self._guide(params.x, step)
            self.guided_calls += 1
        except Refused as error:
            self.error = error
            raise
        except BlocksError as error:
            # A refiner or the hires pass brought another model.
            self.error = Refused(f"ASAG settings: blocks: {error}", 422)
            raise self.error from error
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            self.error = Refused(f"ASAG: the perturbed pass failed: {type(error).__name__}: {reason}", 500)
            raise self.error from error

    def _guide(self, rows: Tensor, step: Step) -> None:
        denoiser = step.denoiser
        weights = [[part.weight for part in parts] for parts in denoiser.sampler.sampler_extra_args["cond"].batch]
        if sum(map(len, weights)) != step.cond_rows or step.recorded_rows < step.cond_rows:
            raise Refused(
                f"ASAG: {step.cond_rows} conditional rows of {step.recorded_rows} run, {weights} expected; another "
                "extension changed what the model is given, and ASAG can't guide that",
                500,
            )
        layers = choose_layers(unet(), FAMILY, step.blocks)
        scene = Scene(latent_size=tuple(rows.shape[-2:]))
        with perturbed(layers, FAMILY, self.operator, scene):
            perturbed_rows = step.predict_cond_rows(whole_calls=fixes_rows(denoiser.p))
        delta = mean_delta(rows[: step.cond_rows], perturbed_rows, weights)
        shift = delta * (self._adapted(step, delta) if self.settings.adaptive else step.scale)
        # Conditional rows image by image, then a block of one row per image: uncond, or two with InstructPix2Pix.
        images = [image for image, parts in enumerate(weights) for _ in parts]
        images += list(range(step.images)) * ((rows.shape[0] - step.cond_rows) // step.images)
        reference = rows[[images.index(image) for image in range(step.images)]].clone()
        shift_rows(rows, shift, images)
        if self.settings.rescale:
            guided = self._combined(rows, weights, step)
            factor = rescale_factor(reference, guided, self.settings.rescale)
            rows *= factor[images]

    def _adapted(self, step: Step, delta: Tensor) -> Tensor:
        """The adaptive scale: δ of a denoised picture is σ times that of the noise, which DDIM and the like give."""
        sigma = step.calls[0][1][0]
        return self.adaptive(step.scale, delta if is_timestep_sampler(step.inner_model) else delta / sigma)

    def _combined(self, rows: Tensor, weights: list[list[float]], step: Step) -> Tensor:
        """What the host will make of the rows, (images, …): rows scaled by a factor give it scaled by the factor."""
        denoiser = step.denoiser
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


def check_blocks(p: Any, settings: AsagSettings) -> None:
    """Raise Refused before sampling when the model that runs first, or is to run the hires pass, lacks the blocks."""
    hires = getattr(p, "enable_hr", False) and not getattr(p, "hr_checkpoint_name", None)
    passes = {"blocks": False, "hires_blocks": True} if hires else {"blocks": False}
    model = unet()
    for name, is_hires in passes.items():
        scale, blocks = settings.in_pass(is_hires)
        try:
            if scale:
                choose_layers(model, FAMILY, blocks)
        except BlocksError as error:
            raise Refused(f"ASAG settings: {name}: {error}", 422) from error


def arm(p: Any, settings: AsagSettings, unguided: Callable[[], None]) -> None:
    """Guide what the next `p.sample` generates. `unguided` is called if no step of it came to be guided.

    The wrapper around `p.sample` is where the host lets errors through, and where cleaning up is certain.
    """
    run = GuidedRun(settings)

    def guarded(sample: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        check_blocks(p, settings)
        out = sample(*args, **kwargs)
        if run.error is not None:
            raise run.error
        if not run.guided_calls:
            unguided()
            if not run.aside:
                p.comment("ASAG guided no step of this image: none lies in its window, or hires fix was off")
        return out

    _wrap_sample(p, run, guarded)


def refuse(p: Any, error: Exception) -> None:
    """Let the next `p.sample` end the request with `error`; a settings problem is the client's mistake."""
    status_code = 422 if isinstance(error, SettingsError) else 500

    def refused(sample: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        raise Refused(str(error), status_code) from error

    _wrap_sample(p, None, refused)


def disarm(p: Any) -> None:
    """Undo `arm` and `refuse`; harmless when neither was called."""
    run = p.__dict__.pop(RUN, None)
    if run is not None:
        run.close()
    wrapper = p.__dict__.get("sample")
    if hasattr(wrapper, "asag_restores"):
        p.__dict__.pop("sample")
        # What another extension had put on the instance comes back; otherwise the class's method is there again.
        p.__dict__.update(wrapper.asag_restores)


def _wrap_sample(p: Any, run: GuidedRun | None, around: Callable[..., Tensor]) -> None:
    """Put a wrapper around `p.sample` for one call. Used up, and held on to by another extension, it does nothing."""
    disarm(p)
    sample, used = p.sample, []

    def wrapped(*args: Any, **kwargs: Any) -> Tensor:
        if used:
            return sample(*args, **kwargs)
        used.append(True)
        try:
            return around(sample, *args, **kwargs)
        finally:
            disarm(p)

    wrapped.asag_restores = {name: value for name, value in p.__dict__.items() if name == "sample"}
    p.sample = wrapped
    if run is not None:
        setattr(p, RUN, run)


class Callbacks:
    """The two callbacks that the host calls for every generation; each finds its run on the denoiser's `p`."""

    def __init__(self) -> None:
        self.run: GuidedRun | None = None

    def cfg_denoiser(self, params: Any) -> None:
        self.run = getattr(params.denoiser.p, RUN, None)
        if self.run is not None:
            self.run.on_cfg_denoiser(params)

    def cfg_denoised(self, params: Any) -> None:
        run, self.run = self.run, None
        if run is not None:
            run.on_cfg_denoised(params)
