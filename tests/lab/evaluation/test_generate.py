"""The same images however they are split, broken off and gone on with, or lose a worker on Ray."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from asag.lab.evaluation import cli, distribute
from asag.lab.evaluation.generate import Job, make
from asag.lab.evaluation.plan import (
    EvaluationError,
    Item,
    Sampling,
    items,
    parts,
    read_methods,
)
from asag.lab.evaluation.store import Store
from tests import tiny_text

PROMPTS = ["a red cat", "two dogs", "a blue house by the sea", "", "a cup on a table", "two dogs and a cat"]
METHODS = (
    '{"cfg": {}, "asag": {"scale": 1.5}, "far": {"scale": 0.1, "adaptive": true, "rescale": 0.5, "method": "seg"}}'
)
SAMPLING = Sampling(steps=2, guidance_scale=4.0, size=(64, 64))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdxl")
    tiny_text.sdxl().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Here and in Ray's workers; another number may round otherwise."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def job(pipeline: Path, out: Path, methods: str = "cfg,asag:1.5", batch: int = 1, sampling: Sampling = SAMPLING) -> Job:
    return Job(pipeline, out, sampling, tuple(read_methods(methods)), batch, "cpu")


def pixels(folder: Path) -> dict[str, Any]:
    """Every file below images/ but for unfinished ones, as int16 (H,W,3)."""
    paths = sorted(folder.glob("images/*/[!.]*"))
    return {str(path.relative_to(folder)): np.asarray(Image.open(path)).astype(np.int16) for path in paths}


def inodes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_ino for path in folder.glob("images/*/[!.]*")}


def furthest(first: dict[str, Any], second: dict[str, Any]) -> int:
    """The largest difference in grey levels; the images must be the same ones."""
    assert first.keys() == second.keys()
    return max(int(np.abs(first[name] - second[name]).max()) for name in first)


# The same images ---------------------------------------------------------------------------------------------------


def test_any_split_gives_the_same_images(sdxl: Path, tmp_path: Path) -> None:
    """To one grey level, for a matrix product may round otherwise in another batch; in the same batch to the bit."""
    every = items(PROMPTS[:2], [0, 1])

    def made(name: str, batch: int, shards: Sequence[Sequence[Item]]) -> dict[str, Any]:
        assert sum(map(job(sdxl, tmp_path / name, METHODS, batch), shards)) == 3 * len(every)
        return pixels(tmp_path / name)

    alone = made("alone", 1, [every])
    assert len({image.tobytes() for image in alone.values()}) == 3 * len(every)
    assert furthest(made("shards", 1, list(parts(every, 3))), alone) == 0
    together = made("together", 3, [every])
    assert furthest(made("again", 3, list(parts(every, 3))), together) == 0
    assert furthest(together, alone) <= 1
    assert furthest(made("otherwise", 2, [every[1:], every[:1]]), alone) <= 1


def test_sd3_splits_too() -> None:
    pipe, every = tiny_text.sd3(), items(PROMPTS[:3], [0])
    for method in read_methods("cfg,asag:1.5"):
        together, alone = (
            [
                np.asarray(image).astype(np.int16)
                for part in parts(every, size)
                for image in make(pipe, SAMPLING, method, part)
            ]
            for size in (3, 1)
        )
        assert max(np.abs(one - other).max() for one, other in zip(together, alone, strict=True)) <= 1


# The command -------------------------------------------------------------------------------------------------------


def command(pipeline: Path, out: Path, *more: str) -> list[str]:
    prompts = out.parent / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"caption": prompt}) + "\n" for prompt in PROMPTS))
    given = ["--pipeline", str(pipeline), "--prompts", str(prompts), "--out", str(out), "--device", "cpu"]
    return [*given, "--methods", "cfg,asag:1.5", "--steps", "2", "--guidance-scale", "4", "--size", "64", *more]


def test_broken_off_it_goes_on(sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(command(sdxl, tmp_path / "straight")) == 0
    write, written = Store.write, []

    def failing(store: Store, *given: Any) -> None:
        written.append(given)
        if len(written) == 6:
            raise KeyboardInterrupt
        write(store, *given)

    monkeypatch.setattr(Store, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        cli.main(command(sdxl, tmp_path / "broken"))
    stored = inodes(tmp_path / "broken")
    assert len(stored) == 5
    assert cli.main(command(sdxl, tmp_path / "broken")) == 0
    assert len(written) == 6 + 2 * len(PROMPTS) - 5
    assert inodes(tmp_path / "broken").items() >= stored.items()
    assert furthest(pixels(tmp_path / "broken"), pixels(tmp_path / "straight")) <= 1


def test_an_image_is_stored_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, method = Store(tmp_path), read_methods("cfg")[0]

    def half(image: Image.Image, file: Any, format: str) -> None:
        file.write(b"half a picture")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", half)
        with pytest.raises(OSError, match="no space"):
            store.write(method, Item(0, "a cat", 0), Image.new("RGB", (8, 8)))
    assert store.missing(method, [Item(0, "a cat", 0)])
    store.write(method, Item(0, "a cat", 0), Image.new("RGB", (8, 8)))
    assert not store.missing(method, [Item(0, "a cat", 0)])


def test_a_folder_takes_more_prompts_and_methods_but_no_other_settings(tmp_path: Path) -> None:
    store, asag = Store(tmp_path / "out"), read_methods("asag:1.5")
    store.claim(tmp_path, SAMPLING, asag, PROMPTS[:2])
    store.claim(tmp_path, SAMPLING, read_methods("pag:3"), PROMPTS)
    store.claim(tmp_path, SAMPLING, asag, PROMPTS[:1])
    with pytest.raises(EvaluationError, match="steps: 4; allowed: 2, as for the images in"):
        store.claim(tmp_path, Sampling(steps=4, guidance_scale=4.0, size=(64, 64)), asag, PROMPTS)
    with pytest.raises(EvaluationError, match="prompts: number 1: 'other'; allowed: 'two dogs'"):
        store.claim(tmp_path, SAMPLING, asag, [PROMPTS[0], "other"])
    with pytest.raises(EvaluationError, match=r"methods: pag-3: .*'blocks': 'late'.*; allowed: .*'scale': '3'"):
        store.claim(tmp_path, SAMPLING, read_methods('{"pag-3": {"blocks": "late"}}'), PROMPTS)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--size", "12 x"], "size: '12 x'; allowed: WIDTHxHEIGHT"),
        (["--device", "gpu"], "device: 'gpu'"),
        (["--pipeline", "nowhere"], "a folder with a model_index.json"),
        (["--methods", '{"a": {"blocks": "in.99"}}'], "in.99"),
    ],
)
def test_bad_options_are_named(
    sdxl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert cli.main([*command(sdxl, tmp_path / "out"), *more]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--steps", "--batch", "--limit", "--shard"])
def test_nothing_begins_with_a_number_out_of_its_range(tmp_path: Path, option: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command(tmp_path, tmp_path / "out"), option, "0"])
    assert ended.value.code == 2
    assert not (tmp_path / "out").exists()


# On Ray ------------------------------------------------------------------------------------------------------------


def test_a_killed_worker_loses_and_repeats_nothing(sdxl: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from ray import cloudpickle
    from ray.cluster_utils import Cluster

    # Ray's workers can't import this module.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    shards = list(parts(items(PROMPTS, [0, 1]), 4))
    work, store, notes = job(sdxl, tmp_path / "ray"), Store(tmp_path / "ray"), tmp_path / "notes"
    notes.mkdir()

    def watched(shard: Sequence[Item]) -> int:
        """The work; leaves a note of each attempt: the shard, and how many images it lacked. The first attempt at
        shard 1 loses its worker before it stores the fourth image."""
        number, lacked = shards.index(shard), sum(len(store.missing(method, shard)) for method in work.methods)
        first = not list(notes.glob(f"{number}-*"))
        (notes / f"{number}-{os.getpid()}").write_text(str(lacked))
        if number == 1 and first:
            write, written = Store.write, []

            def killed(self: Store, *given: Any) -> None:
                written.append(given)
                if len(written) == 4:
                    (notes / "at the kill").write_text(json.dumps(inodes(store.folder)))
                    os.kill(os.getpid(), signal.SIGKILL)
                write(self, *given)

            Store.write = killed
        return work(shard)

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        made = sum(distribute.run(watched, shards, cluster.address, gpu=False))
    finally:
        cluster.shutdown()
    at_the_kill = json.loads((notes / "at the kill").read_text())
    assert sorted(int(note.name.split("-")[0]) for note in notes.glob("*-*")) == sorted([*range(len(shards)), 1])
    # The lost attempt reports nothing: what it had stored is what the second one found and the sum lacks.
    total = sum(2 * len(shard) for shard in shards)
    assert sorted(int(note.read_text()) for note in notes.glob("1-*")) == [5, 8]
    assert made == total - 3
    assert inodes(tmp_path / "ray").items() >= at_the_kill.items()
    job(sdxl, tmp_path / "serial")([item for shard in shards for item in shard])
    assert furthest(pixels(tmp_path / "ray"), pixels(tmp_path / "serial")) == 0
    assert len(inodes(tmp_path / "ray")) == total


def test_the_command_shares_out_on_a_ray_of_its_own(
    sdxl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    shared = command(sdxl, tmp_path / "ray", "--ray", "local", "--shard", "3", "--batch", "2")
    assert cli.main(shared) == 0
    assert cli.main(command(sdxl, tmp_path / "serial", "--batch", "2")) == 0
    assert furthest(pixels(tmp_path / "ray"), pixels(tmp_path / "serial")) == 0
    assert cli.main([*shared, "--methods", '{"a": {"blocks": "in.99"}}']) == 2
    assert "in.99" in capsys.readouterr().err
