"""What the user is told of a guided run, under the images and, for clients of the API, in the infotext; on test_forge's
double of a host."""

import json
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from asag.hosts.generation import Refused, refuse
from asag.hosts.notes import KEY, forget, note
from asag.settings import AsagSettings, SettingsError
from tests.hosts import test_forge
from tests.hosts.test_forge import Block, plain

WHOLE_KEY = "ASAG note"

host = test_forge.host  # a fixture


def guided(host, **settings):
    """Without a branch, which the double has no place for: that would be told, too."""
    return test_forge.guided(host, reuse=False, **settings)


def told(host) -> str:
    return host.p.extra_generation_params.get(WHOLE_KEY, "")


def test_what_is_told_stands_in_the_infotext_too(host):
    guided(host, start=1.0)
    assert told(host) == host.comments[0]
    assert "guided no step" in told(host)


def test_a_run_that_went_as_asked_leaves_no_note(host):
    guided(host)
    assert host.p.extra_generation_params == {}
    assert host.comments == []


def test_a_note_is_told_once_and_forgotten_with_its_batch():
    comments: list[str] = []
    p = SimpleNamespace(comment=comments.append, extra_generation_params={"ASAG": "scale 1.5"})
    for message in ("one", "two, three", "one"):
        note(p, message)
    assert p.extra_generation_params == {"ASAG": "scale 1.5", "ASAG note": "one; two, three"}
    forget(p)
    forget(p)
    assert p.extra_generation_params == {"ASAG": "scale 1.5"}
    assert KEY == WHOLE_KEY


@pytest.mark.parametrize("how", ["interrupted", "skipped"])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_run_that_is_stopped_tells_how_many_steps_were_guided(host, monkeypatch, how, after):
    state = SimpleNamespace(interrupted=False, skipped=False)
    shared = ModuleType("modules.shared")
    shared.state = state
    monkeypatch.setitem(sys.modules, "modules.shared", shared)
    step = host.step

    def stopping():
        if host.denoiser.step == after:
            setattr(state, how, True)
            raise StopIteration  # the hosts' InterruptedException
        return step()

    sample = host.p.sample

    def sampled():
        host.step = stopping
        try:
            return sample()
        except StopIteration:
            return None

    host.p.sample = sampled
    guided(host)
    assert told(host) == f"ASAG guided {after} of 4 steps: the image was {how}"
    assert bool(host.unguided) == (after == 0)
    assert not host.model.diffusion_model._forward_pre_hooks


def test_a_push_of_exactly_nothing_is_told(host):
    """One token in the weakened block: its attention is its value, weakened or not."""
    host.x = host.x[..., :1, :1]
    torch.testing.assert_close(guided(host, scale=8.0), plain(host), rtol=0, atol=0)
    assert "ASAG changed nothing" in told(host)


class TwoBlocks(nn.Module):
    """The double of a UNet with a block in its decoder as well."""

    def __init__(self) -> None:
        super().__init__()
        self.input_blocks = nn.ModuleList()
        self.middle_block, self.output_blocks = nn.ModuleList([Block()]), nn.ModuleList([Block()])

    def forward(self, x, timestep, context=None, transformer_options=None):
        for place, block in (("middle", self.middle_block[0]), ("output", self.output_blocks[0])):
            transformer_options["block"] = (place, 0)
            x = block(x, context, transformer_options)
        return x


def switching_to(host, other: nn.Module) -> None:
    """From the third step on the host runs another model, which a refiner or the hires pass brought."""
    step = host.step

    def switched():
        if host.denoiser.step == 1:
            out = step()
            host.model.diffusion_model = other
            return out
        return step()

    host.step = switched


def test_blocks_that_a_later_model_lacks_lose_no_pass(host):
    later = host.model.diffusion_model
    host.model.diffusion_model = TwoBlocks()
    switching_to(host, later)
    shift = guided(host, blocks="out.0", scale=2.0)[2:]
    assert told(host).startswith(
        "ASAG used the blocks auto in a later model (refiner or hires checkpoint): blocks: 'out.0'"
    )
    assert len(host.comments) == 1
    host.model.diffusion_model = later
    torch.testing.assert_close(shift, guided(host, blocks="auto", scale=2.0)[2:])


class Linear(nn.Module):
    """The double of a model of no known family."""

    def forward(self, x, timestep, context=None, transformer_options=None):
        return 0.5 * x


def test_a_later_model_that_cant_be_guided_loses_no_pass(host):
    first = host.model.diffusion_model
    switching_to(host, Linear())
    out = guided(host, scale=2.0)
    host.model.diffusion_model, host.step = first, type(host).step.__get__(host)
    torch.testing.assert_close(out[:2], guided(host, scale=2.0)[:2])
    host.model.diffusion_model = Linear()
    torch.testing.assert_close(out[2:], plain(host)[2:])
    assert (
        "ASAG didn't guide a later model (refiner or hires checkpoint): model: tests.hosts.test_run_notes.Linear"
        in told(host)
    )


def header_of(path: Path, *names: str) -> Path:
    """A safetensors file's length and header, without its tensors."""
    header = json.dumps({name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in names}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


MIDDLE = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"


@pytest.mark.parametrize(
    ("brought", "settings", "message"),
    [
        (
            "hr",
            {"hires_blocks": "out.3"},
            "ASAG settings: hires_blocks: the hires checkpoint lacks 'out.3'; this",
        ),
        ("refiner", {"blocks": "mid, out.0"}, "ASAG settings: blocks: the refiner lacks 'out.0'; this model"),
    ],
)
def test_blocks_that_a_later_checkpoint_lacks_are_refused_before_it_samples(host, tmp_path, brought, settings, message):
    host.model.diffusion_model = TwoBlocks()
    info = SimpleNamespace(filename=str(header_of(tmp_path / "a.safetensors", MIDDLE)))
    if brought == "hr":
        host.p.enable_hr, host.p.hr_checkpoint_name, host.p.hr_checkpoint_info = True, "another", info
    else:
        host.p.refiner_checkpoint_info = info
    host.step = None  # must not be called
    with pytest.raises(Refused, match=f"^{message}") as refused:
        guided(host, **settings)
    assert refused.value.status_code == 422


@pytest.mark.parametrize("blocks", ["mid", "auto", "late", "all"])
def test_blocks_that_a_later_checkpoint_has_are_taken(host, tmp_path, blocks):
    host.p.enable_hr, host.p.hr_checkpoint_name = True, "another"
    host.p.hr_checkpoint_info = SimpleNamespace(filename=str(header_of(tmp_path / "a.safetensors", MIDDLE)))
    guided(host, hires_blocks=blocks)
    assert told(host) == ""


def test_a_checkpoint_that_isnt_read_so_is_no_hindrance(host, tmp_path):
    host.p.enable_hr, host.p.hr_checkpoint_name = True, "another"
    host.p.hr_checkpoint_info = SimpleNamespace(filename=str(tmp_path / "missing.ckpt"))
    guided(host, hires_blocks="out.3")
    assert told(host) == ""


def test_a_mistake_is_one_line_in_the_log_without_a_traceback(host, caplog):
    caplog.set_level(logging.WARNING)
    with pytest.raises(SettingsError) as mistake:
        AsagSettings.from_mapping({"scale": -1})
    refuse(host.p, mistake.value)
    with pytest.raises(Refused) as refused:
        host.p.sample()
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__
    with pytest.raises(Refused) as refused:
        guided(host, blocks="out.9")
    assert refused.value.__suppress_context__
    assert [record.exc_info for record in caplog.records] == [None, None]
    assert caplog.records[0].message == "ASAG settings: scale: -1; allowed: a number from 0 to 100"


def test_a_failure_is_in_the_log_with_its_traceback_once(host, caplog):
    refuse(host.p, ZeroDivisionError("inside"))
    with pytest.raises(Refused, match="inside") as refused:
        host.p.sample()
    assert refused.value.status_code == 500
    assert [record.exc_info[0] for record in caplog.records] == [ZeroDivisionError]
