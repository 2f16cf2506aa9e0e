"""What all hosts share of a guided run, step by step; the host and its steps are doubles."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asag.blocks import BlocksError
from asag.hosts.generation import RUN, GuidedRun, arm, disarm, refuse, run_of
from asag.hosts.refused import Refused
from asag.kernel_choice import DeviceLost
from asag.models.base import UnsupportedModel
from asag.settings import AsagSettings, SettingsError
from tests.support import broken_cuda


class Step:
    """The double of a guided step."""

    def __init__(self, scale: float, blocks: str) -> None:
        self.given, self.removed = (scale, blocks), 0

    def remove(self) -> None:
        self.removed += 1


class Run(GuidedRun):
    """One whose steps are doubles; `errors` are raised when the next steps are opened."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(AsagSettings(enabled=True, **settings))
        self.opened: list[Step] = []
        self.errors: list[Exception] = []
        self.model = nn.Identity()

    def open_step(self, params: Any, scale: float, blocks: str) -> Step:
        if self.errors:
            raise self.errors.pop(0)
        self.opened.append(Step(scale, blocks))
        return self.opened[-1]

    def entrance(self, denoiser: Any) -> nn.Module:
        return self.model

    def comes_to(self, number: int, total: int = 4, **p: Any) -> None:
        denoiser = SimpleNamespace(step=number, total_steps=total, p=SimpleNamespace(**{"scripts": None} | p))
        self.on_cfg_denoiser(SimpleNamespace(denoiser=denoiser))


def test_each_step_in_the_window_is_opened_with_its_scale_and_the_one_before_removed() -> None:
    run = Run(scale=2.0, blocks="mid", start=0.25, schedule="linear")
    for number in range(4):
        run.comes_to(number)
        run.step = run.step and run.opened[-1]
    assert run.call == 3
    # linear: from the scale at start to 0 at end, over a quarter, a half, three quarters of the calls.
    assert [step.given for step in run.opened] == [
        (2.0, "mid"),
        (pytest.approx(4 / 3), "mid"),
        (pytest.approx(2 / 3), "mid"),
    ]
    assert [step.removed for step in run.opened] == [1, 1, 0]
    assert (run.announced, run.missed_calls) == (4, 2)
    run.end()
    assert [step.removed for step in run.opened] == [1, 1, 1]
    assert (run.step, run.barrier) == (None, None)
    run.end()


def test_a_step_that_was_used_is_none_that_was_missed() -> None:
    run = Run()
    for number in range(3):
        run.comes_to(number)
        run.step = None  # as a host's adapter does after guiding
    assert run.missed_calls == 0


def test_a_pass_of_the_sampler_begins_everything_anew() -> None:
    run = Run(figures=True)
    run.comes_to(0, total=4)
    average, run.reuse.reason = run.scaling.unit._push, "a reason"
    run.comes_to(1, total=4)
    assert run.scaling.unit._push is average
    assert run.reuse.reason == "a reason"
    run.comes_to(0, total=3)
    assert run.scaling.unit._push is not average
    assert run.reuse.reason == ""
    assert run.announced == 7
    assert run.trace is not None
    assert [traced.calls for traced in run.trace.passes] == [4, 3]
    assert Run().trace is None


@pytest.mark.parametrize(
    ("p", "settings", "given", "field"),
    [
        ({}, {}, (1.5, "mid"), "blocks"),
        ({"is_hr_pass": False}, {"hires_scale": 3.0, "hires_blocks": "late"}, (1.5, "mid"), "blocks"),
        ({"is_hr_pass": True}, {"hires_scale": 3.0, "hires_blocks": "late"}, (3.0, "late"), "hires_blocks"),
        ({"is_hr_pass": True}, {}, (1.5, "mid"), "blocks"),
        ({"is_hr_pass": True}, {"hires": "first"}, None, "blocks"),
        ({"is_hr_pass": False}, {"hires": "hires"}, None, "blocks"),
    ],
)
def test_scale_and_blocks_are_those_of_the_pass(p: Any, settings: Any, given: Any, field: str) -> None:
    run = Run(blocks="mid", **settings)
    run.comes_to(0, **p)
    assert [step.given for step in run.opened] == ([] if given is None else [given])
    assert (run.step is not None, run.blocks_field) == (given is not None, field)


# What goes wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (Refused("as it is", 418), 418, "as it is"),
        (BlocksError("no such block"), 422, "ASAG settings: hires_blocks: no such block"),
        (UnsupportedModel("an unknown one"), 422, "ASAG settings: model: an unknown one"),
        (ValueError("first\nsecond"), 500, "ASAG: the weakened prediction failed: ValueError: first"),
        (ValueError(), 500, "ASAG: the weakened prediction failed: ValueError"),
    ],
)
def test_an_error_ends_the_run_at_the_models_entrance(error: Exception, status: int, message: str) -> None:
    run = Run(hires_blocks="late")
    run.errors = [error]
    with pytest.raises(Refused, match=f"^{message}$") as refused:
        run.comes_to(0, is_hr_pass=True)
    assert (refused.value.status_code, run.error) == (status, refused.value)
    # The host swallows it, and goes on to the next step: there its own call of the model raises it.
    run.comes_to(1)
    assert run.opened == []
    with pytest.raises(Refused, match=message):
        run.model(torch.zeros(1))
    run.end()
    assert run.model(torch.ones(1)) == 1


@pytest.mark.parametrize(
    ("error", "told", "opened"),
    [
        (
            BlocksError("lacks it"),
            "ASAG used the blocks auto in a later model (refiner or hires checkpoint): blocks: lacks it",
            [(1.5, "mid"), (1.5, "auto")],
        ),
        (UnsupportedModel("new"), "ASAG didn't guide a later model (refiner or hires checkpoint): new", [(1.5, "mid")]),
        (Refused("new", 422), "ASAG didn't guide a later model (refiner or hires checkpoint): new", [(1.5, "mid")]),
    ],
)
def test_a_model_that_comes_later_loses_nothing(error: Exception, told: str, opened: Any) -> None:
    run = Run(blocks="mid")
    run.comes_to(0)
    for _ in range(2):
        run.errors = [error]
        run.comes_to(1)
        run.step = None
    assert run.notes == [told]
    assert [step.given for step in run.opened] == [opened[0], *opened[1:], *opened[1:]]
    assert run.error is None


def test_a_failure_in_a_later_step_ends_the_run() -> None:
    run = Run()
    run.comes_to(0)
    run.errors = [Refused("failed", 500)]
    with pytest.raises(Refused, match="failed"):
        run.comes_to(1)
    assert run.error is not None
    assert run.notes == []


def test_beside_what_a_further_pass_confuses_nothing_is_guided_and_it_is_told_once() -> None:
    active = SimpleNamespace(title=lambda: "Regional Prompter", active=True)
    run = Run()
    for number in range(2):
        run.comes_to(number, scripts=SimpleNamespace(alwayson_scripts=[active]))
    assert run.opened == []
    assert run.notes == ["ASAG was off for this image: it can't run beside Regional Prompter"]
    other = Run()
    other.comes_to(0, scripts=SimpleNamespace(alwayson_scripts=[]))
    assert (len(other.opened), other.conflict, other.notes) == (1, "", [])


# The scale -----------------------------------------------------------------------------------------------------------

DELTA = torch.tensor([[[3.0, -4.0]], [[0.0, 1.0]]])


def test_the_scale_is_the_steps_and_the_largest_push_is_known() -> None:
    run = Run()
    assert run.scale_of(2.5, DELTA, 2.0, None) == 2.5
    assert run.scaling.largest == 4
    run.scale_of(2.5, DELTA / 8, 2.0, None)
    assert run.scaling.largest == 4
    run.scale_of(2.5, DELTA * 2, 2.0, None)
    assert run.scaling.largest == 8


@pytest.mark.parametrize(("settings", "needed"), [({}, False), ({"unit": "push"}, False), ({"unit": "cfg"}, True)])
def test_cfgs_own_push_is_needed_in_unit_cfg_and_for_figures(settings: dict[str, Any], needed: bool) -> None:
    assert Run(**settings).scaling.needs_cfg is needed
    assert Run(figures=True, **settings).scaling.needs_cfg


def test_unit_cfg_goes_by_the_quotient_of_the_two_pushes_and_says_where_cfg_pushed_nowhere() -> None:
    run = Run(unit="cfg", figures=True)
    assert run.trace is not None
    run.trace.begin_pass(4)
    found = run.scale_of(0.5, DELTA, 2.0, 3 * DELTA)
    torch.testing.assert_close(found, torch.full((2, 1, 1), 1.5))
    assert not run.scaling.unit.only_faint
    sizes = [3 * (25 / 2) ** 0.5 / 2, 3 * (1 / 2) ** 0.5 / 2]
    assert run.trace.steps[0].cfg_sizes == pytest.approx(sizes)


def test_unit_push_goes_by_the_size_of_the_noises_push() -> None:
    run = Run(unit="push", figures=True)
    assert run.trace is not None
    run.trace.begin_pass(4)
    run.call = 2
    found = run.scale_of(0.5, DELTA, 2.0, None)
    assert isinstance(found, Tensor)
    sizes = torch.tensor([[[(25 / 2) ** 0.5 / 2]], [[(1 / 2) ** 0.5 / 2]]])
    torch.testing.assert_close(found, 0.5 / (sizes + 1e-3))
    (step,) = run.trace.steps
    assert step.number == 2
    assert step.scales == pytest.approx(found.flatten().tolist())
    assert step.sizes == pytest.approx(sizes.flatten().tolist())
    traced = Run(figures=True)
    assert traced.trace is not None
    traced.trace.begin_pass(4)
    assert traced.scale_of(0.5, DELTA, 2.0, None) == 0.5
    assert (traced.trace.steps[0].number, traced.trace.steps[0].scales) == (0, (0.5, 0.5))


# The request ---------------------------------------------------------------------------------------------------------


class Processing:
    """The double of a request."""

    def __init__(self) -> None:
        self.comments: list[str] = []
        self.extra_generation_params: dict[str, str] = {}
        self.sampled: list[Any] = []

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        self.sampled.append((args, kwargs))
        return "latents"

    def comment(self, message: str) -> None:
        self.comments.append(message)


class HasNoLayers:
    """The double of a family."""

    name, experimental = "Family", True

    def layers(self, model: nn.Module) -> list[Any]:
        return []


def armed(p: Processing, run: GuidedRun) -> list[str]:
    """Arms a host that has a model of no layers, with settings that ask for none; gives what is noted if unguided."""
    noted: list[str] = []
    host: Any = SimpleNamespace(families=(), run=lambda settings: run, model=lambda: (nn.Identity(), HasNoLayers()))
    trace = arm(host, p, AsagSettings(scale=0.0), lambda: noted.append("unguided"))
    assert trace is run.trace
    return noted


def test_a_request_is_guided_once_and_left_as_it_was() -> None:
    p, run = Processing(), Run(figures=True)
    run.guided_calls, run.step = 3, Step(1.0, "mid")
    step, noted = run.step, armed(p, run)
    assert run_of(SimpleNamespace(p=p)) is run
    assert p.sample(1, seed=2) == "latents"  # type: ignore[comparison-overlap]
    assert p.sampled == [((1,), {"seed": 2})]
    assert noted == []
    assert step.removed == 1
    assert run_of(SimpleNamespace(p=p)) is None
    assert RUN not in p.__dict__
    assert "sample" not in p.__dict__
    (message,) = p.comments
    assert message.startswith("ASAG is experimental in Family")
    assert p.extra_generation_params == {"ASAG note": message}


def test_a_request_of_which_nothing_was_guided_says_so() -> None:
    p = Processing()
    noted = armed(p, Run())
    p.sample()
    assert noted == ["unguided"]
    assert any("guided no step" in message for message in p.comments)


def test_an_error_that_the_host_swallowed_ends_the_request() -> None:
    p, run = Processing(), Run()
    noted = armed(p, run)
    run.error = Refused("failed", 500)
    with pytest.raises(Refused, match="failed"):
        p.sample()
    assert (noted, p.comments) == ([], [])
    assert "sample" not in p.__dict__


def test_a_kernel_that_broke_the_device_is_named_wherever_the_host_stumbled(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stumbling(Processing):
        def sample(self, *args: Any, **kwargs: Any) -> Any:
            broken_cuda(monkeypatch)
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    p = Stumbling()
    armed(p, Run())
    with pytest.raises(DeviceLost, match="restart with ASAG_IMPL=streaming"):
        p.sample()
    assert RUN not in p.__dict__


def test_a_kernel_that_broke_the_device_is_named_where_the_perturbed_pass_stumbled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    p, run = Processing(), Run()
    armed(p, run)
    broken_cuda(monkeypatch)
    run.error = Refused("ASAG: the weakened prediction failed: RuntimeError: CUDA error", 500)
    with pytest.raises(DeviceLost, match="restart with ASAG_IMPL=streaming"):
        p.sample()


def test_disarming_ends_a_run_that_never_sampled() -> None:
    p, run = Processing(), Run()
    armed(p, run)
    run.step = step = Step(1.0, "mid")
    disarm(p)
    disarm(p)
    assert step.removed == 1
    assert set(p.__dict__) == {"comments", "extra_generation_params", "sampled"}


@pytest.mark.parametrize(
    ("error", "status", "logged"),
    [
        (Refused("a", 409), 409, []),
        (Refused("a", 422), 422, ["a"]),
        (SettingsError(["a"]), 422, ["ASAG settings: a"]),
        (ValueError("a"), 500, ["ASAG failed: a"]),
    ],
)
def test_a_refused_request_has_its_status_and_one_line_in_the_log(
    error: Exception, status: int, logged: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    p = Processing()
    refuse(p, error)
    with pytest.raises(Refused) as refused:
        p.sample()
    assert (refused.value.status_code, refused.value.detail) == (status, str(error))
    assert caplog.messages == logged
    assert p.sampled == []
    assert [bool(record.exc_info) for record in caplog.records] == [status == 500] * len(logged)
