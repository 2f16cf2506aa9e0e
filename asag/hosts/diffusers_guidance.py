"""The guidance of one diffusers denoiser: hooks that shift the host's prediction by s δ.

Source: the denoising loops of diffusers/pipelines. With classifier-free guidance the denoiser gets all images twice,
unconditional rows first; without it, and in Flux, the conditional rows alone. Hooks on the denoiser let the host's
own call run and shift all rows by s δ (see asag.guidance). The perturbed rows branch off inside that call (see
asag.branch); where they can't, the perturbed call is one of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from asag.chosen_heads import ChosenHeads
from asag.finite import FinitePushes
from asag.guidance import cfg_push, keep_contrast, rescale_factor, scheduled_scale
from asag.hosts.diffusers_call import (
    DenoiserCall,
    Rescaling,
    Shift,
    WholeCall,
    argument,
    grey_of,
    level_of,
    picture_of,
    plain_options,
    velocity_of_grey,
    with_rows,
)
from asag.hosts.diffusers_caller import calling_pipeline
from asag.hosts.diffusers_models import FAMILIES, denoiser_of, eager
from asag.hosts.diffusers_noise import PassNoise
from asag.hosts.diffusers_other_code import OtherCode, nothing_kept, other_code
from asag.hosts.diffusers_pass import Passes
from asag.kept_delta import KeptDelta
from asag.models.base import TokenGrid, UnsupportedModel, family_of
from asag.models.diffusers_mmdit import FluxTransformer
from asag.models.diffusers_unet import DiffusersUnet
from asag.perturb import branching, choose_layers, perturbed, slice_rows
from asag.random_state import RandomState
from asag.rounding import Rounding
from asag.settings import AsagSettings
from asag.trace import Trace
from asag.units import WITHOUT_CFG
from asag.watched import Watched

logger = logging.getLogger(__name__)

NO_CFG = (
    "ASAG uses unit push at %g times the scale: unit cfg needs CFG, and the calls have none (CFG scale 1, a distilled "
    "model, or a separate call for the negative prompt, as in Flux)"
)


class Guidance:
    """One guidance of one denoiser. `before` and `after` enclose each of the host's calls of it.

    `holds` says whether a guidance is the one that counts now: of nested ones the innermost.
    """

    def __init__(
        self, pipe: Any, denoiser: nn.Module, settings: AsagSettings, holds: Callable[[Guidance], bool]
    ) -> None:
        self.pipe, self.denoiser, self.settings, self.holds = pipe, denoiser, settings, holds
        self.model = eager(denoiser)
        self.family = family_of(self.model, FAMILIES)
        self.heads = ChosenHeads()
        self.layers = choose_layers(self.model, self.family, settings.blocks, self.heads)
        self.trace = Trace() if settings.figures else None
        self.operator = Watched(settings.operator(), self.trace) if self.trace else settings.operator()
        self.timesteps_of_sigma = 1 if isinstance(self.family, FluxTransformer) else 1000
        self.kept, self.finite, self.rounding = KeptDelta(settings.every), FinitePushes(), Rounding()
        self.passes = [Passes(pipe, self.family, settings.unit)]
        self.current = self.passes[0]
        self.other_code: list[OtherCode] = []
        self.warned = ""
        self.thread: int | None = None
        self.call: DenoiserCall | None = None
        self.opened = ExitStack()
        with perturbed(self.layers, self.family, self.operator):
            pass  # a layer that can't be perturbed says so before sampling starts

    def attach(self, undone: ExitStack) -> None:
        """Hook the denoiser, next to its forward: what others hook on or change is outside, for both passes alike.
        `undone` takes the hooks away.

        Hooks and not a replaced forward, since accelerate's offloading replaces that one again after each image.
        """
        undone.callback(self.close)
        undone.callback(self.denoiser.register_forward_pre_hook(self.before, with_kwargs=True).remove)
        undone.callback(self.denoiser.register_forward_hook(self.after, with_kwargs=True, prepend=True).remove)
        undone.callback(self.denoiser.register_forward_hook(self.finish, always_call=True).remove)

    def finish(self, *hooked: Any) -> None:
        """The host's call is over, also when it failed; one that another thread's call kept out changes nothing."""
        if self.thread in (None, get_ident()):
            self.close()

    def close(self) -> None:
        """Take a branch out of the model."""
        self.opened.close()
        self.thread = None

    def before(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Copy what the perturbed pass needs, before the host's call takes things out of its arguments."""
        if not self.holds(self):
            return
        if self.thread not in (None, get_ident()):
            raise UnsupportedModel("model: two threads called it at once; allowed: one call after another")
        # After a KeyboardInterrupt torch doesn't call `finish`.
        self.opened.close()
        self.thread, self.call = get_ident(), None
        current = self.current = self.passes_of(calling_pipeline(self.pipe, denoiser))
        if current.repeats_step(args, kwargs, self.settings.rescale):
            return
        step, steps = current.next_step()
        if step == 0:
            self.begin_pass(steps)
        scale = self.scale_at(step, steps, args, kwargs)
        sample = argument(args, kwargs, 0, "sample", "hidden_states")
        cond = current.conditional_rows(sample)
        if not scale:
            self.kept.forget()
            return
        total = sample.shape[0]
        own = slice_rows(list(args), cond, total), slice_rows(kwargs, cond, total)
        self.call = DenoiserCall(*own, cond, scale, reuses=self.kept.reuses(current, cond, sample.shape))
        if self.call.reuses:
            return
        if self.other_code:
            everything = slice(0, total)
            whole = slice_rows(list(args), everything, total), slice_rows(kwargs, everything, total)
            self.call.whole = WholeCall(*whole, RandomState(sample.device, self.model))
        elif self.can_branch(kwargs):
            token_grid = TokenGrid(current.latent_size(args, kwargs))
            branch = branching(self.model, self.layers, self.family, self.operator, token_grid, cond, total)
            self.call.branch = self.opened.enter_context(branch)

    def scale_at(self, step: int, steps: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        """The guidance scale of a step, 0 outside the window."""
        given, current = self.settings, self.current
        if not isinstance(given.start, str) and not isinstance(given.end, str):
            return scheduled_scale(given.scale, given.schedule, step, steps, given.start, given.end)
        if step == 0 or current.noise is None:
            is_flow = not isinstance(self.family, DiffusersUnet)
            current.noise = PassNoise(current.pipe.scheduler, args, kwargs, is_flow, self.timesteps_of_sigma)
        noise = current.noise
        return given.window.scale(given.scale, given.schedule, noise.schedule, noise.share(step), steps)

    def passes_of(self, pipe: Any) -> Passes:
        """What is counted of a pipeline's calls; raises UnsupportedModel for a kind that can't be guided."""
        for passes in self.passes:
            if passes.pipe is pipe:
                return passes
        denoiser_of(pipe)
        self.passes.append(Passes(pipe, self.family, self.settings.unit))
        return self.passes[-1]

    def begin_pass(self, steps: int) -> None:
        """A pipeline begins with a picture: others may have put code into the model, or taken theirs out."""
        self.log()
        eager(self.denoiser)
        self.other_code = other_code(self.model)
        self.kept.forget()
        if self.other_code and self.warned != str(self.other_code[0]):
            self.warned = str(self.other_code[0])
            logger.warning("ASAG takes whole extra passes, of all rows: %s, which may treat rows together", self.warned)
        self.heads.forget()
        if self.trace:
            self.trace.begin_pass(steps)

    def log(self) -> None:
        """Have the log say how a pass went that is over."""
        self.finite.log()
        self.rounding.log()

    def can_branch(self, kwargs: dict[str, Any]) -> bool:
        """Whether the perturbed rows can be those of a branch: in a compiled call none can begin."""
        return self.settings.reuse and self.model is self.denoiser and plain_options(kwargs)

    def after(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """The host's prediction, a tuple or an output object as the host asked for, with its rows shifted."""
        self.opened.close()
        if not self.holds(self):
            return None
        call, self.call = self.call, None
        rows = output[0]
        if call is not None:
            weakened = None
            if call.branch is not None:
                rows, weakened = call.branch.split(rows)
                output = with_rows(output, rows)
            elif not call.reuses:
                weakened = self.predict_weakened(call)
            self.current.shift = self.shift_of(rows, call, self.delta_of(rows[call.cond], call, weakened))
        if self.current.shift is not None:
            self.current.shift.apply(rows)
        return output

    def predict_weakened(self, call: DenoiserCall) -> Tensor:
        """A whole extra pass. Beside code of others it is of all the host's rows, with the host's random numbers.

        Raises UnsupportedModel when that code remembers the pass.
        """
        token_grid = TokenGrid(self.current.latent_size(call.args, call.kwargs))
        weakened: Tensor
        with torch.no_grad(), perturbed(self.layers, self.family, self.operator, token_grid):
            if call.whole is None:
                weakened = self.model.forward(*call.args, **call.kwargs)[0]
            else:
                with nothing_kept(self.other_code), call.whole.random_state.again():
                    weakened = self.model.forward(*call.whole.args, **call.whole.kwargs)[0][call.cond]
        return weakened

    def delta_of(self, cond: Tensor, call: DenoiserCall, weakened: Tensor | None) -> Tensor:
        """δ of each image, (images, …), in what the model predicts: this call's, or the last one's."""
        level: float | Tensor = 1.0
        if self.settings.every > 1 and isinstance(self.family, DiffusersUnet):
            level = level_of(self.current.pipe.scheduler, self.current.alphas, call.args, call.kwargs)
        if weakened is None:
            return self.kept.again(level)
        delta = cond - weakened
        self.rounding.add(delta, cond, cond.dtype)
        return self.kept.keep(delta, level)

    def shift_of(self, rows: Tensor, call: DenoiserCall, delta: Tensor) -> Shift:
        cond = rows[call.cond]
        if self.settings.contrast < 1:
            delta = self.less_contrast(delta, cond, call)
        guided, cfg = cond, None
        if call.cond.start and (self.needs_cfg or self.settings.rescale):
            uncond = rows[: call.cond.start]
            guided = uncond + self.current.pipe.guidance_scale * (cond - uncond)
            cfg = cfg_push(guided, uncond, cond - uncond) if self.needs_cfg else None
        added = self.finite(delta * self.scale_of(call, delta, cfg))
        if not self.settings.rescale:
            return Shift(added)
        guided = guided + added
        # The weights that the pipeline combines rows with have the sum 1, so what is done to every row is done to the
        # guided result. It is done to the picture, as in the WebUIs: noise and velocities are noise for the most part.
        if isinstance(self.family, DiffusersUnet):
            noise = self.current.pipe.scheduler, self.current.alphas
            zero = grey_of(*noise, call.args, call.kwargs, cond, "rescale: above 0")
        else:
            zero = velocity_of_grey(call.args, call.kwargs, cond, self.timesteps_of_sigma)
        return Shift(added, Rescaling(rescale_factor(zero - cond, zero - guided, self.settings.rescale), zero))

    @property
    def needs_cfg(self) -> bool:
        """Whether CFG's own push has to be known."""
        return self.settings.unit == "cfg" or self.trace is not None

    def scale_of(self, call: DenoiserCall, delta: Tensor, cfg: Tensor | None) -> float | Tensor:
        """What δ is multiplied by, a number or (images, 1, …); `cfg` is CFG's own push, None without CFG
        or where it isn't needed."""
        if self.settings.unit == "paper" and not self.trace:
            return call.scale
        current = self.current
        before = current.unit.without_cfg
        scale = current.unit(call.scale, delta, cfg)
        if current.unit.without_cfg and not before:
            logger.warning(NO_CFG, WITHOUT_CFG)
        if self.trace:
            self.trace.heads = self.heads.told()
            size = current.latent_size(call.args, call.kwargs)
            self.trace.add_step(current.steps - 1, scale, delta, size, reused=call.reuses, cfg=cfg)
        return scale

    def less_contrast(self, delta: Tensor, cond: Tensor, call: DenoiserCall) -> Tensor:
        """δ, of a noise, a velocity or a picture, without the share of contrast that isn't wanted."""
        kept = self.settings.contrast
        if not isinstance(self.family, DiffusersUnet):
            zero = velocity_of_grey(call.args, call.kwargs, cond, self.timesteps_of_sigma)
            return keep_contrast(delta, zero - cond, kept, channels=1 if cond.ndim == 4 else -1)
        noise = self.current.pipe.scheduler, self.current.alphas
        return keep_contrast(delta, picture_of(*noise, call.args, call.kwargs, cond), kept)
