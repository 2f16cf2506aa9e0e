"""Whose call of a denoiser it is, on doubles of pipelines; with diffusers' own: test_diffusers_beside.py."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from asag.hosts import diffusers_caller
from asag.hosts.diffusers_caller import calling_pipeline
from asag.models.base import UnsupportedModel


class DiffusionPipeline:
    """The double of diffusers': calls its denoiser in a loop of its own."""

    def __init__(self, part: str, denoiser: nn.Module) -> None:
        setattr(self, part, denoiser)

    def __call__(self, run: Any) -> Any:
        return run()


class Wrapper:
    """What may stand between a pipeline and its denoiser."""

    def __call__(self, run: Any) -> Any:
        return run()


@pytest.fixture
def of_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    """This file stands for diffusers' code, too."""
    known = diffusers_caller.BETWEEN | {__name__.split(".")[0]}
    monkeypatch.setattr(diffusers_caller, "BETWEEN", known)


@pytest.mark.parametrize("part", ["unet", "transformer"])
@pytest.mark.usefixtures("of_diffusers")
def test_the_pipeline_whose_loop_calls_is_found(part: str) -> None:
    denoiser = nn.Identity()
    opened, runs, other = (DiffusionPipeline(part, each) for each in (denoiser, denoiser, nn.Identity()))
    wrapper = Wrapper()
    found = runs(lambda: wrapper(lambda: other(lambda: calling_pipeline(opened, denoiser))))
    assert found is runs
    assert opened(lambda: runs(lambda: calling_pipeline(opened, denoiser))) is runs


def test_a_call_from_elsewhere_is_refused_with_its_place() -> None:
    denoiser = nn.Identity()
    pipe = DiffusionPipeline("unet", denoiser)
    with pytest.raises(
        UnsupportedModel,
        match=r"DiffusionPipeline's denoiser was called by test_a_call_from_elsewhere.* in .*test_diff",
    ):
        calling_pipeline(pipe, denoiser)


def test_what_is_no_pipeline_of_diffusers_is_taken_as_it_is() -> None:
    pipe = Wrapper()
    assert calling_pipeline(pipe, nn.Identity()) is pipe
