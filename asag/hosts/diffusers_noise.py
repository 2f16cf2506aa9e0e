"""How much noise the calls of a diffusers denoiser have left, for windows by noise."""

from __future__ import annotations

from typing import Any

from asag.hosts.diffusers_call import argument
from asag.models.base import UnsupportedModel
from asag.noise import NoiseSchedule

# A flow-matching scheduler's timestep is σ times this.
FLOW_TIMESTEPS = 1000


class PassNoise:
    """The timesteps of one pipeline call, read from the device once, at its first step.

    args and kwargs are those of the denoiser's first call; `is_flow` says that it predicts a velocity whose timestep is
    σ times `timesteps_of_sigma`. Pipelines run a part of the scheduler's timesteps (img2img, a refiner's share), which
    begins with the first call's.

    Raises:
        UnsupportedModel: naming a scheduler that doesn't say its ᾱ.
    """

    def __init__(
        self, scheduler: Any, args: Any, kwargs: dict[str, Any], is_flow: bool, timesteps_of_sigma: int
    ) -> None:
        alphas: Any = getattr(scheduler, "alphas_cumprod", None)
        if not is_flow and alphas is None:
            raise UnsupportedModel(
                f"start and end by noise with {type(scheduler).__name__}; allowed: fractions of the steps, or a "
                "scheduler with alphas_cumprod"
            )
        self.schedule = NoiseSchedule() if is_flow else NoiseSchedule.of_alphas(alphas.tolist())
        self.is_flow = is_flow
        self.timesteps = [float(each) for each in scheduler.timesteps.tolist()]
        given = argument(args, kwargs, 3 if is_flow else 1, "timestep")
        first = float(given.flatten()[0] if hasattr(given, "flatten") else given)
        first *= FLOW_TIMESTEPS / timesteps_of_sigma if is_flow else 1
        # Half-precision models get a rounded one.
        self.first = min(range(len(self.timesteps)), key=lambda place: abs(self.timesteps[place] - first))

    def share(self, call: int) -> float:
        """The share of the noise schedule that is over at model call `call` of the pipeline call, from 0."""
        timestep = self.timesteps[min(self.first + call, len(self.timesteps) - 1)]
        return self.schedule.share(timestep / FLOW_TIMESTEPS) if self.is_flow else self.schedule.share_at(timestep)
