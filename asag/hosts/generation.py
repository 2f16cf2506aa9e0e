"""One guided generation in a WebUI: what all hosts share. A host's subclass of GuidedRun says how it is guided there.

The `cfg_denoiser` callback comes before the host's own pass over the model in each step, in every host. Exceptions in
callbacks and scripts are logged and swallowed; those out of `p.sample` end the request, so errors are let through
there.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from asag.blocks import BlocksError
from asag.chosen_heads import ChosenHeads
from asag.counted import Counted
from asag.finite import FinitePushes
from asag.guidance import scheduled_scale
from asag.hosts.checked import blocks_field, check_blocks
from asag.hosts.conflicts import conflict
from asag.hosts.host import Host
from asag.hosts.notes import KEY, note
from asag.hosts.refused import Refused
from asag.hosts.reuse import Reuse
from asag.hosts.run_notes import notes_on
from asag.hosts.sample_wrapper import SampleWrapper
from asag.hosts.scaling import Scaling
from asag.kept_delta import KeptDelta
from asag.kernel_choice import KERNELS
from asag.models.base import Family, UnsupportedModel
from asag.noise import NoiseSchedule
from asag.rounding import Rounding
from asag.settings import AsagSettings, SettingsError
from asag.trace import Trace
from asag.watched import Watched

logger = logging.getLogger(__name__)

RUN = "_asag_run"
# Of a run: what brings another model after its first.
LATER = "a later model (refiner or hires checkpoint)"


class GuidedStep(Protocol):
    """One denoiser step that is guided, from the `cfg_denoiser` callback on. What it does inside the host's pass it
    does within `guard`, so that an error there is told as any other."""

    guard: Callable[[], AbstractContextManager[None]]

    def remove(self) -> None:
        """Take the hooks out of the model; harmless when there are none."""


class GuidedRun:
    """The guidance of one generation (one `p`): all its state, from its first step to its last."""

    def __init__(self, settings: AsagSettings) -> None:
        self.settings = settings
        self.trace = Trace() if settings.figures else None
        self.operator = Counted(Watched(settings.operator(), self.trace) if self.trace else settings.operator())
        self.heads = ChosenHeads()
        self.scaling, self.kept = Scaling(settings, self.trace), KeptDelta(settings.every)
        self.finite, self.rounding = FinitePushes(), Rounding()
        self.call = self.announced = 0
        self.guided_calls = self.reused_calls = self.missed_calls = 0
        self.left_out: Counter[str] = Counter()
        self.blocks_field = "blocks"
        self.reuse = Reuse(settings.reuse)
        self.conflict: str | None = None
        self.notes: list[str] = []
        self.began = False
        self.error: Exception | None = None
        self.step: Any = None
        self.barrier: Any = None

    # -- what a host says --------------------------------------------------------------------------------------------

    def open_step(self, params: Any, scale: float, blocks: str) -> GuidedStep:
        """Begin a guided step: record what the host's own pass is given, or branch off in it; where the last δ is used
        again (`kept`), leave the model alone. `params` are the callback's."""
        raise NotImplementedError

    def entrance(self, denoiser: Any) -> nn.Module:
        """A module that the host calls in every step: what a hook of it raises, the host doesn't swallow."""
        raise NotImplementedError

    def noise(self, params: Any) -> tuple[NoiseSchedule, float]:
        """The noise schedule of the model that samples, and the share of it that is over at this step.

        For windows by noise alone: it reads σ, for which the host waits for the device, before the model runs.
        """
        raise NotImplementedError

    # -- what holds for all ------------------------------------------------------------------------------------------

    def on_cfg_denoiser(self, params: Any) -> None:
        """Before the host's pass: decide whether this step is guided, and if so record what the model is given."""
        if self.step is not None:
            # reForge's CFG++ samplers give the model options of their own, and what guides isn't called.
            self.missed_calls += 1
        self.close()
        if self.error is not None:
            self.barrier = self.entrance(params.denoiser).register_forward_pre_hook(self._stop)
            return
        with self.errors_kept():
            self._begin_step(params)

    def _begin_step(self, params: Any) -> None:
        denoiser = params.denoiser
        self.call = denoiser.step
        began, self.began = self.began, True
        if denoiser.step == 0:
            self.announced += denoiser.total_steps
            self.scaling.unit.begin_pass()
            self.kept.forget()
            self.reuse.begin_pass()
            if self.trace:
                self.trace.begin_pass(denoiser.total_steps)
        if self.has_conflict(denoiser.p):
            return
        chosen = self.settings
        is_hires = getattr(denoiser.p, "is_hr_pass", False)
        base, blocks = chosen.in_pass(is_hires)
        self.blocks_field = blocks_field(chosen, is_hires)
        scale = self._scheduled(base, params)
        if scale:
            self.step = self._step_of(params, scale, blocks) if began else self.open_step(params, scale, blocks)
            if self.step is not None:
                self.step.guard = self.errors_kept
        else:
            self.kept.forget()

    def _scheduled(self, base: float, params: Any) -> float:
        """The guidance scale of this step, 0 outside the window."""
        chosen, call, calls = self.settings, params.denoiser.step, params.denoiser.total_steps
        if isinstance(chosen.start, str) or isinstance(chosen.end, str):
            if not base:
                return 0.0
            with self.errors_kept("the model's noise schedule can't be read"):
                schedule, share = self.noise(params)
            return chosen.window.scale(base, chosen.schedule, schedule, share, calls)
        return scheduled_scale(base, chosen.schedule, call, calls, chosen.start, chosen.end)

    def _step_of(self, params: Any, scale: float, blocks: str) -> GuidedStep | None:
        """A step of a run that has begun: where a refiner or the hires pass brought a model that can't be guided as
        asked, what was generated so far isn't thrown away."""
        try:
            return self.open_step(params, scale, blocks)
        except BlocksError as error:
            self.tell(f"ASAG used the blocks auto in {LATER}: {self.blocks_field}: {error}")
            return self.open_step(params, scale, "auto")
        except UnsupportedModel as error:
            self.tell(f"ASAG didn't guide {LATER}: {error}")
        except Refused as error:
            if error.status_code != 422:
                raise
            self.tell(f"ASAG didn't guide {LATER}: {error}")
        return None

    def tell(self, message: str) -> None:
        """Have this said under the pictures, once; an empty message isn't."""
        if message and message not in self.notes:
            logger.warning(message)
            self.notes.append(message)

    def scale_of(self, scale: float, delta: Tensor, sigma: float | Tensor, cfg: Tensor | None) -> float | Tensor:
        """What this step's δ, (images, …), is multiplied by: asag.hosts.scaling.Scaling.factor."""
        return self.scaling.factor(self.call, scale, delta, sigma, cfg, self.kept.reused)

    def leave_out(self, why: str) -> None:
        """This step isn't guided; `why` ends a note that begins "ASAG left out 2 steps" (see run_notes)."""
        self.left_out[why] += 1

    def _stop(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.error is not None:
            raise self.error

    def has_conflict(self, p: Any) -> bool:
        """Whether an extension is active that a further pass would confuse; says so once, in the log and the result."""
        if self.conflict is None:
            self.conflict = conflict(p.scripts.alwayson_scripts if p.scripts else []) or ""
            if self.conflict:
                self.tell(f"ASAG was off for this image: it can't run beside {self.conflict}")
        return bool(self.conflict)

    @contextmanager
    def errors_kept(self, failed: str = "the weakened prediction failed") -> Iterator[None]:
        """Whatever is raised inside becomes a Refused, which says what `failed`, and is kept: the host may swallow it
        on the way."""
        try:
            yield
        except Refused as error:
            self.error = error
            raise
        except (BlocksError, UnsupportedModel) as error:
            # A refiner or the hires pass brought another model.
            name = self.blocks_field if isinstance(error, BlocksError) else "model"
            self.error = Refused(f"ASAG settings: {name}: {error}", 422)
            raise self.error from None
        except Exception as error:
            reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
            self.error = Refused(f"ASAG: {failed}: {reason}", 500)
            logger.exception(self.error.detail)
            raise self.error from None

    def close(self) -> None:
        """Take the hooks out of the model; harmless when there are none."""
        for hook in (self.step, self.barrier):
            if hook is not None:
                hook.remove()
        self.step = self.barrier = None

    def end(self) -> None:
        """The generation is over, however it ended: leave nothing of it in the host."""
        self.close()


def arm(host: Host, p: Any, settings: AsagSettings, unguided: Callable[[], None]) -> Trace | None:
    """Guide what the next `p.sample` generates. `unguided` is called if no step of it came to be guided.

    Returns what the guidance will leave for figures; None when the settings want none.

    The wrapper around `p.sample` is where the host lets errors through, and where cleaning up is certain.
    """
    run = host.run(settings)

    def guarded(sample: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        with run.errors_kept("the model can't be looked at"):
            model, family = host.model()
            check_blocks(model, family, p, settings, host.families)
        with KERNELS.loss_named():
            out = sample(*args, **kwargs)
            if run.error is not None:
                raise run.error
        if not run.guided_calls:
            unguided()
        _note(p, run, family)
        return out

    _wrap_sample(p, run, guarded)
    return run.trace


def _note(p: Any, run: GuidedRun, family: Family) -> None:
    """Note how a run went that is over. The picture is there: it isn't lost when that fails."""
    try:
        run.tell(run.finite.message())
        run.tell(run.rounding.message())
        if run.trace:
            run.trace.heads = run.heads.told()
        for message in notes_on(run, family):
            note(p, message)
    except Exception as error:
        message = f"ASAG can't say whether this image was guided as asked: {type(error).__name__}: {error}"
        logger.exception(message)
        p.extra_generation_params[KEY] = message


def refuse(p: Any, error: Exception) -> None:
    """Let the next `p.sample` end the request with `error`; a settings problem is the client's mistake."""
    status_code = error.status_code if isinstance(error, Refused) else 422 if isinstance(error, SettingsError) else 500
    if status_code == 500:
        logger.error("ASAG failed: %s", error, exc_info=error)

    def refused(sample: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        raise Refused(str(error), status_code) from None

    _wrap_sample(p, None, refused)


def disarm(p: Any) -> None:
    """Undo `arm` and `refuse`; harmless when neither was called."""
    run = p.__dict__.pop(RUN, None)
    if run is not None:
        run.end()
    wrapper = p.__dict__.get("sample")
    if isinstance(wrapper, SampleWrapper):
        p.__dict__.pop("sample")
        # What another extension had put on the instance comes back; otherwise the class's method is there again.
        p.__dict__.update(wrapper.before)


def _wrap_sample(p: Any, run: GuidedRun | None, around: Callable[..., Tensor]) -> None:
    """Put a wrapper around `p.sample` for one call."""
    disarm(p)
    p.sample = SampleWrapper(p, around, disarm)
    if run is not None:
        setattr(p, RUN, run)


def run_of(denoiser: Any) -> GuidedRun | None:
    """The run that guides a denoiser's generation, or None."""
    run: GuidedRun | None = getattr(denoiser.p, RUN, None)
    return run
