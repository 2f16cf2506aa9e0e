"""Files that can't be read, written or locked, at each call that asag makes of the file system: what is told is one
sentence, what was kept stays, nothing half-written lies about, and the next try works."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asag.hosts import before_loading
from asag.hosts.checkpoints import Unreadable, contents
from asag.preset_file import PresetError
from asag.presets import Presets
from asag.settings import AsagSettings
from asag.webui.about import docs_address
from asag.webui.earlier_labels import start_values
from tests.faults.aftermath import logged
from tests.faults.calls import calls
from tests.faults.injection import MESSAGE, Faults, led, raising

FULL = "No space left on device"
IN_FILES = [each for each in calls() if each.kind == "file"]
MINE = AsagSettings(scale=2.25, blocks="mid")


def full(call: Any) -> Any:
    raise OSError(28, FULL)


@pytest.fixture(scope="module")
def faults() -> Iterator[Faults]:
    with led(IN_FILES) as found:
        yield found


def keys(place: str) -> list[str]:
    return [each.key for each in IN_FILES if each.row.startswith(place)]


def files(folder: Path) -> dict[str, bytes]:
    """What lies there. The lock's own file stays, empty."""
    return {each.name: each.read_bytes() for each in sorted(folder.iterdir()) if each.suffix != ".lock"}


def fails(faults: Faults, key: str, act: Callable[[], Any], error: type[Exception]) -> None:
    """It fails with a sentence when the disk is full, and ends at once when it is interrupted."""
    with faults.at(key, 0, full), pytest.raises(error, match=FULL) as failed:
        act()
    assert "\n" not in str(failed.value)
    with faults.at(key, 0, raising(KeyboardInterrupt)), pytest.raises(KeyboardInterrupt, match=MESSAGE):
        act()


SAVING = [*keys("asag/preset_file.py: PresetFile._locked"), *keys("asag/preset_file.py: PresetFile._write")]
SAVING += keys("asag/preset_file.py: PresetFile._parse")
RELEASE = keys("asag/preset_file.py: PresetFile._locked: lock.release")


@pytest.mark.parametrize("key", [each for each in SAVING if each not in RELEASE])
def test_a_preset_that_cant_be_saved_is_told_and_the_others_stay(faults: Faults, tmp_path: Path, key: str) -> None:
    presets = Presets(tmp_path / "presets.json")
    presets.save("mine", MINE)
    before = files(tmp_path)
    fails(faults, key, lambda: presets.save("more", AsagSettings(scale=3.0)), PresetError)
    assert files(tmp_path) == before
    presets.save("more", AsagSettings(scale=3.0))
    assert (presets.get("mine"), presets.get("more").scale) == (MINE, 3.0)


@pytest.mark.parametrize("key", RELEASE)
def test_a_lock_that_cant_be_given_back_hinders_nobody(faults: Faults, tmp_path: Path, key: str) -> None:
    presets = Presets(tmp_path / "presets.json")
    with faults.at(key, 0, full):
        presets.save("mine", MINE)
    presets.save("more", AsagSettings(scale=3.0))
    assert (presets.get("mine"), presets.get("more").scale) == (MINE, 3.0)


@pytest.mark.parametrize("key", keys("asag/preset_file.py: PresetFile._put_aside"))
def test_a_broken_file_that_cant_be_moved_stays(faults: Faults, tmp_path: Path, key: str) -> None:
    presets = Presets(tmp_path / "presets.json")
    presets.file.path.write_text("{broken")
    fails(faults, key, presets.file.read, PresetError)
    assert files(tmp_path) == {"presets.json": b"{broken"}
    presets.names()
    assert files(tmp_path) == {"presets.json.broken": b"{broken"}


HEADER = json.dumps(
    {"model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight": {"dtype": "F32", "shape": [4, 4]}}
).encode()
READING = [*keys("asag/hosts/checkpoints.py: contents"), *keys("asag/hosts/checkpoints.py: _safetensors_shapes")]


@pytest.mark.parametrize("key", READING)
def test_a_checkpoint_that_cant_be_read_is_told(faults: Faults, tmp_path: Path, key: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(HEADER).to_bytes(8, "little") + HEADER)
    fails(faults, key, lambda: contents(path), Unreadable)
    assert [str(each) for each in contents(path).addresses] == ["mid.0"]


def test_files_that_only_help_are_done_without(faults: Faults, tmp_path: Path) -> None:
    for key, act, without in (
        (keys("asag/webui/about.py")[0], lambda: docs_address(tmp_path), ""),
        (keys("asag/webui/earlier_labels.py")[0], lambda: start_values(tmp_path / "ui-config.json", False), {}),
    ):
        with faults.at(key, 0, full):
            assert act() == without


def test_a_checkpoint_that_cant_be_asked_for_ends_no_request() -> None:
    """It is looked at again once it is loaded."""

    def checkpoints(wanted: str | None = None) -> Any:
        raise RuntimeError(MESSAGE)

    host: Any = SimpleNamespace(checkpoints=checkpoints, families=())
    p = SimpleNamespace(override_settings={"a": 1})
    with logged() as lines:
        before_loading.check(host, p, lambda: AsagSettings(enabled=True))
    assert lines == [f"ASAG can't look into the checkpoint before it is loaded: RuntimeError: {MESSAGE}"]
    assert p.override_settings == {"a": 1}
