"""Presets: the built-in ones are sound, the user's own survive what happens to files."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from asag.preset_file import MOST_LEVELS, PresetError
from asag.presets import PRESETS, Presets, complete, read_shared, write_shared
from asag.settings import AsagSettings, SettingsError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def presets(tmp_path):
    return Presets(tmp_path / "data" / "presets.json")


MINE = AsagSettings(scale=2.25, blocks="mid, out.3", iterations=3, unit="push")


def test_the_built_in_ones_can_be_read_and_told_apart(presets):
    assert presets.names() == ["Paper", "Gentle", "Strong", "Clean", "Fast"]
    for name in PRESETS:
        assert presets.name_of(presets.get(name)) == name
    paper = presets.get("Paper")
    assert (paper.scale, paper.iterations, paper.blocks) == (1.5, 2, "auto")


def test_the_built_in_ones_are_what_their_pictures_were_made_with():
    assert {name: complete(preset) for name, preset in PRESETS.items()} == {
        "Paper": AsagSettings(scale=1.5),
        "Gentle": AsagSettings(scale=0.1, unit="cfg"),
        "Strong": AsagSettings(scale=0.5, unit="cfg"),
        "Clean": AsagSettings(scale=0.6, blocks="late", strength=0.25, contrast=0.0),
        "Fast": AsagSettings(blocks="late", end=0.6, every=2),
    }


def test_a_name_has_at_most_60_characters_and_is_not_custom(presets):
    assert presets.save("x" * 60, MINE) == "x" * 60
    with pytest.raises(PresetError, match="'Custom' comes with ASAG"):
        presets.save("Custom", MINE)


@pytest.mark.parametrize(("bad", "more"), [(3, ""), (4, ""), (5, " and 1 more"), (6, " and 2 more")])
def test_a_notice_names_at_most_four(presets, bad, more):
    presets.file.path.parent.mkdir(parents=True)
    presets.file.path.write_text(json.dumps({f"bad {number}": 1 for number in range(bad)}))
    presets.names()
    assert presets.notice.endswith(f"'bad {min(bad, 4) - 1}' (1; allowed: an object of settings){more}.")


def test_a_preset_may_be_renamed_to_itself_and_saved_again(presets):
    presets.save("mine", MINE)
    assert presets.rename("mine", " mine ") == "mine"
    presets.save("mine", AsagSettings(scale=3.0))
    assert presets.get("mine") == AsagSettings(scale=3.0)


def test_the_lock_of_another_process_is_told_and_nothing_changes(presets, monkeypatch):
    presets.save("mine", MINE)
    monkeypatch.setattr("asag.preset_file.PATIENCE", 0)
    with FileLock(f"{presets.file.path}.lock"):
        with pytest.raises(PresetError, match=r"^Another process is writing the presets in presets\.json: try again$"):
            presets.save("other", MINE)
        assert presets.names()[5:] == ["mine"]
    assert presets.save("other", MINE) == "other"


@pytest.mark.parametrize(
    ("error", "reason"),
    [(NotImplementedError("no locks here"), "no locks here"), (OSError(13, "Not yours"), "Not yours")],
)
def test_a_folder_without_locks_is_told(presets, monkeypatch, error, reason):
    def failing(self, *args, **kwargs):
        raise error

    monkeypatch.setattr(FileLock, "acquire", failing)
    with pytest.raises(PresetError, match=rf"^The presets in presets\.json can't be changed: {reason}$"):
        presets.save("mine", MINE)


def test_a_broken_file_that_cant_be_moved_is_told_and_stays(presets, monkeypatch):
    presets.file.path.parent.mkdir(parents=True)
    presets.file.path.write_text("{")

    def failing(*args):
        raise OSError(13, "Not yours")

    monkeypatch.setattr("os.replace", failing)
    with pytest.raises(
        PresetError, match=r"presets\.json, can't be read \(.*\), and it can't be moved aside \(Not yours\)$"
    ):
        presets.names()
    assert presets.file.path.read_text() == "{"


def test_what_does_not_change_the_picture_is_no_part_of_a_preset(presets):
    presets.save("mine", AsagSettings(enabled=True, scale=2.0, reuse=False))
    assert presets.get("mine") == AsagSettings(scale=2.0)
    assert presets.name_of(AsagSettings(enabled=True, scale=2.0, reuse=False)) == "mine"
    assert presets.name_of(AsagSettings(scale=2.1)) is None


def test_save_rename_delete(presets):
    assert presets.save("  my\n own ", MINE) == "my own"
    again = Presets(presets.file.path)
    assert again.names()[-1] == "my own"
    assert presets.file.path.read_text("utf-8").startswith('{\n  "my own": {\n    "scale": 2.25,')
    assert again.get("my own") == MINE
    assert again.rename("my own", "Überholt 🎨") == "Überholt 🎨"
    assert presets.names()[5:] == ["Überholt 🎨"]
    presets.save("second", AsagSettings())
    presets.delete("Überholt 🎨")
    assert presets.names()[5:] == ["second"]
    assert {path.name for path in presets.file.path.parent.iterdir()} <= {"presets.json", "presets.json.lock"}


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda p: p.save(" ", MINE), "name: ''; allowed: 1 to 60"),
        (lambda p: p.save("a:b", MINE), "without a colon"),
        (lambda p: p.save("x" * 61, MINE), "1 to 60"),
        (lambda p: p.save("Paper", MINE), "'Paper' comes with ASAG"),
        (lambda p: p.rename("Paper", "mine"), "allowed: your own presets: kept"),
        (lambda p: p.rename("kept", "Fast"), "comes with ASAG"),
        (lambda p: p.rename("kept", "kept 2"), "is taken"),
        (lambda p: p.delete("other"), "preset: 'other'; allowed: your own presets: kept, kept 2"),
        (lambda p: p.get("other"), "allowed: Paper, Gentle, Strong, Clean, Fast, kept, kept 2"),
    ],
)
def test_what_cannot_be_done_is_told_and_loses_nothing(presets, act, message):
    presets.save("kept", MINE)
    presets.save("kept 2", MINE)
    with pytest.raises(PresetError, match=message):
        act(presets)
    assert presets.get("kept") == presets.get("kept 2") == MINE


def nested(levels):
    """Lists in one another in a JSON object, itself among the levels."""
    return '{"deep": ' + "[" * (levels - 1) + "]" * (levels - 1) + "}"


BROKEN = ["", "{", "[]", "1", "null", "\x00", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"]
# Python 3.14 reads 50 000 levels, and would write gigabytes of blanks in front of them.
TOO_DEEP = [nested(levels) for levels in (MOST_LEVELS + 1, 900, 50_000)]


@pytest.mark.parametrize("content", BROKEN + TOO_DEEP, ids=lambda content: content[:12])
def test_a_broken_file_is_kept_aside_and_told(presets, content):
    presets.file.path.parent.mkdir(parents=True)
    for number in ("", "2", "3"):
        presets.file.path.write_text(content)
        assert presets.names() == list(PRESETS)
        assert presets.file.path.with_name(f"presets.json.broken{number}").read_text() == content
        assert f"kept as presets.json.broken{number}." in presets.notice
    presets.save("mine", MINE)
    assert presets.get("mine") == MINE


def test_bytes_that_are_no_text_are_kept_aside(presets):
    presets.file.path.parent.mkdir(parents=True)
    presets.file.path.write_bytes(b"\xff\xfe\x80")
    assert presets.names() == list(PRESETS)
    assert presets.file.path.with_name("presets.json.broken").read_bytes() == b"\xff\xfe\x80"


def test_a_write_that_fails_leaves_the_file_as_it_was(presets, monkeypatch):
    presets.save("mine", MINE)
    before = presets.file.path.read_text()

    def full(self, *args, **kwargs):
        with open(self, "w") as file:
            file.write("{")
        raise OSError(28, "No space left")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(PresetError, match="No space left"):
        presets.save("other", MINE)
    assert presets.file.path.read_text() == before
    assert {path.name for path in presets.file.path.parent.iterdir()} <= {"presets.json", "presets.json.lock"}


def test_entries_that_lie_deep_stay_up_to_a_number_of_levels(presets):
    presets.file.path.parent.mkdir(parents=True)
    presets.file.path.write_text(nested(MOST_LEVELS))
    presets.save("mine", MINE)
    assert json.loads(presets.file.path.read_text())["deep"] == json.loads(nested(MOST_LEVELS))["deep"]


MIXED = {
    "newer": {"scale": 2.0, "sharpness": 3},
    "mine": {"scale": 2.25, "blocks": "mid"},
    "too much": {"scale": 999},
    "a:b": {"scale": 1.0},
    "Fast": {"scale": 5.0},
    "no object": 1,
    "": {"scale": 1.0},
    "x" * 99: {"scale": 1.0},
    "half \ud800": {"scale": 1.0},
    "Übung 🎨": {"scale": 3.0},
}


@pytest.fixture
def mixed(presets):
    """A file in which good entries stand among others, behind a byte order mark."""
    presets.file.path.parent.mkdir(parents=True)
    presets.file.path.write_text("\ufeff" + json.dumps(MIXED), encoding="utf-8")
    return presets


def test_bad_entries_hide_no_good_ones_and_are_told(mixed):
    assert mixed.names()[5:] == ["mine", "Übung 🎨"]
    assert mixed.get("mine") == AsagSettings(scale=2.25, blocks="mid")
    assert mixed.name_of(AsagSettings(scale=3.0)) == "Übung 🎨"
    assert mixed.notice.startswith(
        "presets.json keeps presets that can't be used: 'newer' (sharpness: unknown; allowed: "
    )
    assert "'too much' (scale: 999; allowed: a number from 0 to 100), 'a:b' (name: 'a:b'; allowed:" in mixed.notice
    assert mixed.notice.endswith("'Fast' (name: 'Fast' comes with ASAG; allowed: another name) and 4 more.")
    assert [path.name for path in mixed.file.path.parent.iterdir()] == ["presets.json"]


def test_changes_keep_what_cannot_be_used_as_it_stands(mixed):
    mixed.save("second", MINE)
    mixed.rename("mine", "ours")
    mixed.delete("Übung 🎨")
    expected = {("ours" if name == "mine" else name): value for name, value in MIXED.items() if name != "Übung 🎨"}
    assert list(json.loads(mixed.file.path.read_text("utf-8")).items())[:-1] == list(expected.items())
    assert mixed.names()[5:] == ["ours", "second"]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda p: p.save("newer", MINE), "'newer' is a preset in the file that can't be used"),
        (lambda p: p.rename("mine", "too much"), "'too much' is a preset in the file"),
        (lambda p: p.rename("newer", "older"), "preset: 'newer'; allowed: your own presets: mine, Übung 🎨"),
        (lambda p: p.delete("a:b"), "preset: 'a:b'; allowed: your own presets: mine"),
        (lambda p: p.get("no object"), "preset: 'no object'; allowed: Paper"),
        (lambda p: p.save("\ud800", MINE), "allowed: 1 to 60"),
    ],
)
def test_what_cannot_be_used_is_not_written_over(mixed, act, message):
    before = mixed.file.path.read_bytes()
    with pytest.raises(PresetError, match=message):
        act(mixed)
    assert mixed.file.path.read_bytes() == before


def test_a_notice_can_be_shown_by_a_page(mixed):
    mixed.file.path.write_text(json.dumps({"half \ud800": {"half \udc00": 1}}), encoding="utf-8")
    mixed.names()
    assert mixed.notice.encode("utf-8")


def test_a_file_that_cannot_be_opened_is_told_and_stays(presets):
    presets.file.path.mkdir(parents=True)
    for act in (presets.names, lambda: presets.save("mine", MINE)):
        with pytest.raises(PresetError, match=r"presets\.json can't be read: Is a directory"):
            act()
    assert presets.file.path.is_dir()


SAVING = """
import sys
from pathlib import Path
from asag.preset_file import PresetFile
file = PresetFile(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    file.change(lambda found: {**found, f"{sys.argv[2]} {number}": {"scale": float(number)}})
"""


def test_four_processes_that_save_at_once_keep_everything(presets):
    command = [sys.executable, "-c", SAVING, str(presets.file.path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([*command, name], cwd=ROOT, **pipes) for name in "abcd"]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    assert set(presets.names()[5:]) == {f"{name} {number}" for name in "abcd" for number in range(20)}


def test_four_threads_that_save_at_once_keep_everything(presets):
    def save(name):
        for number in range(20):
            presets.save(f"{name} {number}", MINE)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(save, "abcd"))
    assert len(presets.names()[5:]) == 80


@pytest.mark.parametrize("text", ["", "no colon", "name:", "name:  "])
def test_a_line_that_is_none_is_told(text):
    with pytest.raises(PresetError, match="allowed: a line such as"):
        read_shared(text)


def test_a_line_with_a_wrong_setting_names_it():
    with pytest.raises(SettingsError, match=r"scale: '-1'; allowed"):
        read_shared("mine: scale -1; blocks mid")


def test_a_shared_line_may_come_with_blanks_and_is_written_as_documented():
    line = "Fast: scale 1.5; blocks late; end 0.6; every 2"
    assert write_shared("Fast", complete(PRESETS["Fast"])) == line
    assert read_shared("  My own :  scale  2.0 ;; blocks mid, out.3;\n") == (
        "My own",
        AsagSettings(scale=2.0, blocks="mid, out.3"),
    )
