"""ASAG in diffusers' classic pipelines: SD1.x, SD2, SDXL, SD3 and Flux, with ControlNet, img2img, inpaint, IP-Adapter.

    with asag_guidance(pipe, scale=1.5, blocks="mid"):
        image = pipe("a photo of a cat").images[0]

Source: the denoising loops of diffusers/pipelines. With classifier-free guidance the denoiser gets all images twice,
unconditional rows first; without it, and in Flux, the conditional rows alone. Hooks on the denoiser let the host's
own call run and shift all rows by s δ (see asag.guidance). The perturbed rows branch off inside that call (see
asag.branch); where they can't, the perturbed call is one of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from asag.guidance import AdaptiveScale, keep_contrast, rescale_factor, scheduled_scale
from asag.hosts.diffusers_call import Call, Shift, argument, picture_of, scene_of, velocity_of_grey, with_rows
from asag.models.base import UnsupportedModel, family_of, has_class
from asag.models.diffusers_mmdit import FluxTransformer, Sd3Transformer
from asag.models.diffusers_unet import DiffusersUnet
from asag.perturb import branching, choose_layers, perturbed, slice_rows
from asag.settings import AsagSettings, SettingsError
from asag.trace import Trace
from asag.watched import Watched

FAMILIES = (DiffusersUnet(), Sd3Transformer(), FluxTransformer())

# The guidances open on a denoiser; of nested ones the innermost holds.
_open: WeakKeyDictionary[nn.Module, list[object]] = WeakKeyDictionary()


@contextmanager
def asag_guidance(pipe: Any, **settings: Any) -> Iterator[Trace | None]:
    """While open, every call of a classic diffusers pipeline is guided; afterwards the denoiser is as before.

    Args:
        pipe: a pipeline with a `unet` or a `transformer`.
        settings: any of AsagSettings but those of the hires pass; `enabled` is True here unless given.

    Nested use is allowed: the inner guidance holds until its context closes. Of two pipelines that share a denoiser,
    guide one at a time. Settings that change nothing (scale 0, enabled False, an empty window) touch nothing. A
    denoiser that torch.compile returned stays compiled; the perturbed pass runs the module it was made from.

    Yields what the guidance leaves for figures, if `figures` is True, otherwise None. Each pipeline call is a pass in
    it; `asag.figures.draw` draws it:

        with asag_guidance(pipe, figures=True) as trace:
            image = pipe("a photo of a cat").images[0]
        draw(trace, 0, image, "a cat").save("figure.png")

    Raises:
        SettingsError: naming every unknown or bad setting.
        BlocksError: naming the block that the model doesn't have, and what it has.
        UnsupportedModel: naming the pipeline or the model that can't be guided, and why.
    """
    given = AsagSettings.from_mapping({"enabled": True, **settings})
    elsewhere = [f"{name}: {settings[name]!r}; allowed: nothing, here" for name in settings if name.startswith("hires")]
    if elsewhere:
        raise SettingsError(elsewhere)  # a hires pass is a pipeline call of its own
    denoiser = denoiser_of(pipe)
    guidance = Guidance(pipe, denoiser, given) if given.active else None
    handles = guidance.attach() if guidance else []
    stack = _open.setdefault(denoiser, [])
    stack.append(guidance)
    try:
        yield guidance.trace if guidance else None
    finally:
        stack.pop()
        for handle in handles:
            handle.remove()
        if guidance:
            guidance.close()


def denoiser_of(pipe: Any) -> nn.Module:
    """The UNet or transformer of a classic pipeline; raises UnsupportedModel naming a pipeline that can't be guided."""
    name = type(pipe).__name__
    if has_class(pipe, "ModularPipeline"):
        raise UnsupportedModel(f"pipe: {name} is modular; allowed: its guider AdversarialSinkhornAttentionGuidance")
    if has_class(pipe, "PAGMixin"):
        raise UnsupportedModel(f"pipe: {name} perturbs attention itself; allowed: the pipeline without PAG")
    for part in ("unet", "transformer"):
        if isinstance(getattr(pipe, part, None), nn.Module):
            return getattr(pipe, part)
    raise UnsupportedModel(f"pipe: {name} has no unet and no transformer; allowed: a classic diffusers pipeline")


def eager(denoiser: nn.Module) -> nn.Module:
    """The denoiser itself, or the module that torch.compile(denoiser) was given.

    Raises UnsupportedModel where attention can't be replaced: compiled in place, or with a cache of block outputs.
    """
    model = getattr(denoiser, "_orig_mod", denoiser)
    if any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules()):
        raise UnsupportedModel(
            f"model: {type(model).__name__} is compiled in place, by compile() or compile_repeated_blocks(); allowed: "
            "torch.compile(model), whose result leaves the model as it is, or no compilation"
        )
    if getattr(model, "is_cache_enabled", False):
        raise UnsupportedModel(
            f"model: {type(model).__name__} reuses outputs of blocks; allowed: disable_cache() first"
        )
    return model


class Guidance:
    """One guidance of one denoiser. `before` and `after` enclose each of the host's calls of it."""

    def __init__(self, pipe: Any, denoiser: nn.Module, settings: AsagSettings) -> None:
        self.pipe, self.denoiser, self.settings = pipe, denoiser, settings
        self.model = eager(denoiser)
        self.family = family_of(self.model, FAMILIES)
        self.layers = choose_layers(self.model, self.family, settings.blocks)
        self.trace = Trace() if settings.figures else None
        self.operator = Watched(settings.operator(), self.trace) if self.trace else settings.operator()
        self.adaptive = AdaptiveScale()
        self.timesteps_of_sigma = 1 if isinstance(self.family, FluxTransformer) else 1000
        self.steps = 0
        self.rows = 0
        self.timesteps: Tensor | None = None
        self.sample: Tensor | None = None
        self.timestep: Any = None
        self.call: Call | None = None
        self.shift: Shift | None = None
        self.opened = ExitStack()
        with perturbed(self.layers, self.family, self.operator):
            pass  # a layer that can't be perturbed says so before sampling starts

    def attach(self) -> list[Any]:
        """Hook the denoiser, next to its forward: what others hook on or change is outside, for both passes alike.

        Hooks and not a replaced forward, since accelerate's offloading replaces that one again after each image.
        """
        return [
            self.denoiser.register_forward_pre_hook(self.before, with_kwargs=True),
            self.denoiser.register_forward_hook(self.after, with_kwargs=True, prepend=True),
            self.denoiser.register_forward_hook(self.close, always_call=True),
        ]

    def close(self, *hooked: Any) -> None:
        """Take a branch out of the model, also when the host's call failed."""
        self.opened.close()

    def holds(self) -> bool:
        return _open[self.denoiser][-1] is self

    def before(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Copy what the perturbed pass needs, before the host's call takes things out of its arguments."""
        self.call = None
        if not self.holds() or self.repeats_step(args, kwargs):
            return
        self.shift = None
        step, steps = self.next_step()
        given = self.settings
        scale = scheduled_scale(given.scale, given.schedule, step, steps, given.start, given.end)
        sample = argument(args, kwargs, 0, "sample", "hidden_states")
        cond = self.conditional_rows(sample)
        if scale:
            total = sample.shape[0]
            self.call = Call(slice_rows(list(args), cond, total), slice_rows(kwargs, cond, total), cond, scale)
            if self.can_branch(kwargs):
                scene = scene_of(self.call.args, self.call.kwargs)
                branch = branching(self.model, self.layers, self.family, self.operator, scene, cond, total)
                self.call.branch = self.opened.enter_context(branch)

    def can_branch(self, kwargs: dict[str, Any]) -> bool:
        """Whether the perturbed rows can be those of a branch: in a compiled call none can begin, and what is in the
        dictionaries that attention gets (GLIGEN, SD3's IP-Adapter) isn't taken along."""
        options = [kwargs.get(name) or {} for name in ("cross_attention_kwargs", "joint_attention_kwargs")]
        plain = all(isinstance(value, (int, float, str, type(None))) for each in options for value in each.values())
        return self.settings.reuse and self.model is self.denoiser and plain

    def after(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """The host's prediction, a tuple or an output object as the host asked for, with its rows shifted."""
        self.opened.close()
        if not self.holds():
            return None
        call, self.call = self.call, None
        rows = output[0]
        if call is not None:
            if call.branch is not None:
                rows, weakened = call.branch.split(rows)
                output = with_rows(output, rows)
            else:
                scene = scene_of(call.args, call.kwargs)
                with torch.no_grad(), perturbed(self.layers, self.family, self.operator, scene):
                    weakened = self.model.forward(*call.args, **call.kwargs)[0]
            self.shift = self.shift_of(rows, call, weakened)
        if self.shift is not None:
            self.shift.apply(rows)
        return output

    def shift_of(self, rows: Tensor, call: Call, weakened: Tensor) -> Shift:
        cond = rows[call.cond]
        delta = cond - weakened
        if self.settings.contrast < 1:
            delta = self.less_contrast(delta, cond, call)
        scale = self.adaptive(call.scale, delta) if self.settings.adaptive else call.scale
        if self.trace:
            self.trace.add_step(self.steps - 1, scale, delta, scene_of(call.args, call.kwargs).latent_size)
        added = delta * scale
        if not self.settings.rescale:
            return Shift(added, None)
        guided = cond
        if call.cond.start:
            uncond = rows[: call.cond.start]
            guided = uncond + self.pipe.guidance_scale * (cond - uncond)
        guided = guided + added
        # The weights that the pipeline combines rows with have the sum 1, so what is done to every row is done to the
        # guided result. In a UNet it is done to the prediction, as in pipelines that have a guidance_rescale. A
        # velocity is noise for the most part, so there it is done to the picture, as in the WebUIs.
        if isinstance(self.family, DiffusersUnet):
            return Shift(added, rescale_factor(cond, guided, self.settings.rescale))
        zero = velocity_of_grey(call.args, call.kwargs, cond, self.timesteps_of_sigma)
        return Shift(added, rescale_factor(zero - cond, zero - guided, self.settings.rescale), zero)

    def less_contrast(self, delta: Tensor, cond: Tensor, call: Call) -> Tensor:
        """δ, of a noise, a velocity or a picture, without the share of contrast that isn't wanted."""
        kept = self.settings.contrast
        if not isinstance(self.family, DiffusersUnet):
            zero = velocity_of_grey(call.args, call.kwargs, cond, self.timesteps_of_sigma)
            return keep_contrast(delta, zero - cond, kept, channels=1 if cond.ndim == 4 else -1)
        return keep_contrast(delta, picture_of(self.pipe.scheduler, call.args, call.kwargs, cond), kept)

    def repeats_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the host predicts the same latents once more in the same step; those rows get the same shift.

        Flux does it for its negative prompt (the same tensor and timestep again), SD3 for skip-layer guidance.
        """
        if kwargs.get("skip_layers") is not None:
            return True
        if not isinstance(self.family, FluxTransformer):
            return False
        sample, timestep = argument(args, kwargs, 0, "hidden_states"), argument(args, kwargs, 3, "timestep")
        repeats = sample is self.sample and self.timestep is not None and torch.equal(timestep, self.timestep)
        self.sample, self.timestep = sample, timestep
        if repeats and self.settings.rescale and self.shift is not None:
            raise UnsupportedModel(
                f"rescale: {self.settings.rescale} with a negative prompt in {type(self.pipe).__name__}; allowed: 0"
            )
        return repeats

    def next_step(self) -> tuple[int, int]:
        """This model call's number in the pipeline call, from 0, and how many there will be.

        Schedulers make new timesteps for each pipeline call, one for each model call.
        """
        timesteps = self.pipe.scheduler.timesteps
        total = getattr(self.pipe, "num_timesteps", None) or len(timesteps)
        if timesteps is not self.timesteps or self.steps >= total:
            self.timesteps, self.steps, self.rows = timesteps, 0, 0
            self.adaptive = AdaptiveScale()
            if self.trace:
                self.trace.begin_pass(total)
        self.steps += 1
        return self.steps - 1, total

    def conditional_rows(self, sample: Tensor) -> slice:
        """Where the conditional rows are; raises UnsupportedModel if the rows aren't [unconditional, conditional]."""
        total, half = sample.shape[0], sample.shape[0] // 2
        guided = getattr(self.pipe, "do_classifier_free_guidance", None)
        if isinstance(self.family, FluxTransformer) or (guided is not None and not guided):
            return slice(0, total)
        # The same latents twice; looked at once per image, since that waits for the device.
        fits = guided and total == (self.rows or 2 * half)
        if not fits or (not self.rows and not torch.equal(sample[:half], sample[half:])):
            raise UnsupportedModel(
                f"pipe: {type(self.pipe).__name__} calls its denoiser on {total} rows that aren't the unconditional "
                "and the conditional ones of its images; allowed: pipelines with plain classifier-free guidance"
            )
        self.rows = total
        return slice(half, total)
