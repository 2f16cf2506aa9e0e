"""The files of results: lines and scales that several processes add to."""

import threading

from research.asag import evaluate
from research.asag.cells import Cell, Plan, guided
from research.asag.found_scales import Scales
from research.asag.result_files import Measured
from research.asag.sample_size import Size
from research.asag.sampling import Run
from research.lines import read_lines


def test_a_line_stands_for_its_own_pictures_and_its_own_rival_only(tmp_path):
    base = Run.of("unet", False, steps=1)
    run, first, second = (guided(base, {"scale": scale}) for scale in (1.0, 2.0, 3.0))
    cell = Cell("small", "paper", "pag", run, base, first)
    size = Size(40, (1, 2))
    measured = Measured(tmp_path / "small.jsonl", Plan((cell,), 40, (1, 2)))
    line = evaluate.line(cell, size, {}, {})
    measured.add([line])
    assert not measured.lacks([cell], size)
    for smaller in (Size(40, (2,)), Size(30, (1, 2))):
        assert not measured.lacks([cell], smaller)
    for other in (Size(41, (1, 2)), Size(40, (1, 3)), Size(40, (1, 2, 3)), Size(40, (1, 2), 5)):
        assert measured.lacks([cell], other) == [cell]
    changed = Cell("small", "paper", "pag", run, base, second)
    assert measured.lacks([changed], size) == [changed]
    measured.add([evaluate.line(changed, Size(30, (1, 2)), {}, {})])
    assert read_lines(measured.path) == [line]  # which has more pictures
    measured.add([evaluate.line(changed, size, {}, {})])
    assert not measured.lacks([changed], size)
    assert len(read_lines(measured.path)) == 1


def test_writers_that_add_at_the_same_time_lose_nothing(tmp_path):
    base = Run.of("unet", False, steps=1)
    each = [guided(base, {"scale": float(i)}) for i in range(1, 41)]
    cells = [Cell("small", "paper", "asag", run, base) for run in each]
    path = tmp_path / "small.jsonl"

    def add(part):
        measured = Measured(path, Plan(tuple(cells), 40, (1,)))
        for cell in part:
            measured.add([evaluate.line(cell, Size(40, (1,)), {}, {})])

    threads = [threading.Thread(target=add, args=[cells[i::4]]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line["settings"]["scale"] for line in read_lines(path)] == [float(i) for i in range(1, 41)]


def test_two_processes_add_to_the_scales(tmp_path):
    first, second = (Scales(tmp_path / "scales.json") for _ in range(2))
    first.put("unet", "conditional", "norm", {"pag": 1.0})
    second.put("mmdit", "conditional", "norm", {"pag": 2.0})
    assert Scales(tmp_path / "scales.json").get("unet", "conditional", "norm") == {"pag": 1.0}
    assert second.get("unet", "conditional", "norm") == {"pag": 1.0}
