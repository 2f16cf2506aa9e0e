"""Pictures that sd-webui-distributed's workers made, in doubles of it and of what the host does once it has sampled."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from asag.webui import distributed

ASKED = ({"enabled": True, "scale": 8.0},)
GUIDED, PLAIN = "Steps: 3, ASAG: scale 8.0, Version: 1.10.1", "Steps: 3, Version: 1.10.1"
NOTED = 'Steps: 3, ASAG note: "ASAG guided no step: empty, or off", Version: 1.10.1'
NOT_GUIDED = "ASAG didn't guide what the worker two made"


def job(label: str, response: dict[str, str] | None) -> SimpleNamespace:
    """The double of a job whose request is over."""
    worker, thread = SimpleNamespace(label=label, response=response), SimpleNamespace(is_alive=lambda: False)
    return SimpleNamespace(worker=worker, gallery_map=[], thread=thread)


class World:
    """The double of the extension's: its workers' answers, and what its script does with them."""

    def __init__(self, *answers: list[str] | None) -> None:
        """Each answer: the infotexts of a worker's pictures; None: it failed."""
        self.p: Any = None
        self.jobs = [job("master", None)]
        self.jobs[0].thread = None
        for label, texts in zip(("two", "three"), answers, strict=False):
            self.jobs.append(job(label, None if texts is None else {"info": json.dumps({"infotexts": texts})}))

    def add_pictures(self, p: Any, own: int) -> None:
        """postprocess_batch_list"""
        place = own
        for job in self.jobs:
            if job.worker.response is not None:
                count = len(json.loads(job.worker.response["info"])["infotexts"])
                job.gallery_map += range(place, place + count)
                place += count
        p.batch_size = place

    def postprocess(self, processed: Any) -> None:
        for job in self.jobs:
            if job.worker.response is not None:
                for number, place in enumerate(job.gallery_map):
                    text = json.loads(job.worker.response["info"])["infotexts"][number]
                    processed.infotexts[place] = f"{text}, Worker Label: {job.worker.label}"
                job.worker.response = None


class Request:
    """The double of a request `p`."""

    def __init__(self, world: World, own: int = 2, **parameters: Any) -> None:
        script = SimpleNamespace(title=lambda: "Distribute", world=world)
        other = SimpleNamespace(title=lambda: None)
        self.scripts = SimpleNamespace(alwayson_scripts=[other, script])
        self.batch_size, self.batch_index, self.comments = own, 0, {}
        self.extra_generation_params = parameters
        world.p = self

    def comment(self, text: str) -> None:
        self.comments[text] = 1


def infotext(p: Request, index: int) -> str:
    """create_infotext: a list holds a value for each picture."""
    values = {
        name: value[index] if isinstance(value, list) else value for name, value in p.extra_generation_params.items()
    }
    return ", ".join(f"{name}: {value}" for name, value in values.items() if value is not None)


def finish(p: Request, world: World, args: Any = ASKED, first: bool = True) -> tuple[list[str], Any]:
    """What the host does once it has sampled: the infotexts in the pictures' files, and the result. `first`: ASAG's
    scripts come before the extension's."""
    world.add_pictures(p, p.batch_size)
    files = []
    for index in range(p.batch_size):
        p.batch_index = index
        distributed.check_picture(p, args)
        files.append(infotext(p, index))
    processed = SimpleNamespace(infotexts=list(files), comments="".join(f"{text}\n" for text in p.comments))
    if first:
        distributed.check_rest(p, processed, args)
    world.postprocess(processed)
    if not first:
        distributed.check_rest(p, processed, args)
    return files, processed


@pytest.mark.parametrize("first", [True, False])
def test_a_worker_that_guided_as_asked_is_not_spoken_of(first: bool) -> None:
    world = World([GUIDED, GUIDED])
    p = Request(world, ASAG="scale 8.0")
    files, processed = finish(p, world, first=first)
    assert files == ["ASAG: scale 8.0"] * 4
    assert processed.infotexts[2:] == [f"{GUIDED}, Worker Label: two"] * 2
    assert not processed.comments
    assert p.extra_generation_params == {"ASAG": "scale 8.0"}


@pytest.mark.parametrize("first", [True, False])
def test_a_worker_that_did_not_guide_is_named_wherever_the_user_looks(first: bool) -> None:
    """And the file of its picture doesn't say that it was guided."""
    world = World([PLAIN], [GUIDED])
    p = Request(world, ASAG="scale 8.0")
    files, processed = finish(p, world, first=first)
    assert files[:2] == ["ASAG: scale 8.0"] * 2
    assert files[2].startswith(f"ASAG note: {NOT_GUIDED}")
    assert files[3].startswith("ASAG: scale 8.0, ASAG note: ")
    assert f'Version: 1.10.1, ASAG note: "{NOT_GUIDED}' in processed.infotexts[2]
    assert processed.infotexts[3] == f"{GUIDED}, Worker Label: three"
    assert processed.comments.count(NOT_GUIDED) == 1
    assert p.extra_generation_params["ASAG"] == ["scale 8.0", "scale 8.0", None, "scale 8.0"]


def test_of_pictures_made_by_workers_alone_the_result_says_so() -> None:
    """The thin-client mode: the host samples nothing and writes no infotexts."""
    world = World([PLAIN, PLAIN], None)
    p = Request(world, own=0)
    world.add_pictures(p, 0)
    processed = SimpleNamespace(infotexts=["", ""], comments="")
    distributed.check_rest(p, processed, ASKED)
    world.postprocess(processed)
    assert all(NOT_GUIDED in text for text in processed.infotexts)
    # As Processed.comments is in every host: a line each.
    assert processed.comments.count(NOT_GUIDED) == 1
    assert processed.comments.endswith("\n")


def test_a_workers_note_is_noted_here_unless_it_was() -> None:
    note = "ASAG guided no step: empty, or off"
    world = World([NOTED])
    _, processed = finish(Request(world, ASAG="scale 8.0"), world)
    assert processed.comments == f"Worker two: {note}\n"
    world = World([NOTED])
    p = Request(world, **{"ASAG note": note})
    files, processed = finish(p, world)
    assert (files, processed.comments) == ([f"ASAG note: {note}"] * 3, "")


def test_a_worker_that_failed_is_named() -> None:
    """Its pictures don't come; the others' are guided."""
    world = World(None, [GUIDED])
    files, processed = finish(Request(world, ASAG="scale 8.0"), world)
    said = "The worker two sent no pictures; the log of this WebUI says why"
    assert files == [f"ASAG: scale 8.0, ASAG note: {said}"] * 3
    assert processed.comments == f"{said}\n"


def test_a_worker_that_is_still_busy_has_not_failed() -> None:
    """In the batches before the last one."""
    world = World(None)
    world.jobs[1].thread = SimpleNamespace(is_alive=lambda: True)
    assert finish(Request(world, ASAG="scale 8.0"), world)[1].comments == ""


def test_other_settings_than_asked_for_are_named() -> None:
    world = World(['Steps: 3, Hires prompt: "a, ASAG: scale 8.0", ASAG: "scale 2.0; blocks mid, out.3"'])
    files, processed = finish(Request(world, ASAG="scale 8.0"), world)
    said = "with other settings than asked for: scale 2.0; blocks mid, out.3"
    assert processed.comments.count(said) == processed.infotexts[2].count(said) == 1
    assert files[2].startswith("ASAG: scale 2.0; blocks mid, out.3, ASAG note: ")


def test_a_value_that_is_no_text_in_quotes_is_taken_as_it_is() -> None:
    world = World([r'Steps: 3, ASAG: "scale \d"'])
    assert r'than asked for: "scale \d"' in finish(Request(world, ASAG="scale 8.0"), world)[1].comments


def test_a_picture_that_another_extension_added_later_is_not_a_workers() -> None:
    world = World([PLAIN])
    p = Request(world, ASAG="scale 8.0")
    world.add_pictures(p, 2)
    p.batch_index = p.batch_size
    distributed.check_picture(p, ASKED)
    assert (p.comments, p.extra_generation_params) == ({}, {"ASAG": "scale 8.0"})


@pytest.mark.parametrize("args", [({"enabled": False, "scale": 8.0},), ({"enabled": True, "scale": 0.0},), ()])
def test_where_asag_is_off_nothing_is_said(args: Any) -> None:
    world = World([PLAIN], None)
    p = Request(world)
    assert finish(p, world, args)[1].comments == ""
    assert p.extra_generation_params == {}


def test_jobs_of_an_earlier_request_are_not_this_ones() -> None:
    """Switched off, the extension keeps them."""
    world = World([PLAIN])
    finish(Request(world, ASAG="scale 8.0"), world)
    p = Request(World(), ASAG="scale 8.0")
    p.scripts.alwayson_scripts[1].world = world
    distributed.check_picture(p, ASKED)
    assert (p.comments, p.extra_generation_params) == ({}, {"ASAG": "scale 8.0"})
    p.scripts = None
    distributed.check_picture(p, ASKED)
    assert p.comments == {}


def test_a_picture_without_an_infotext_is_not_spoken_of() -> None:
    """What an extension at the worker added, such as a ControlNet map."""
    world = World([GUIDED])
    p = Request(world, ASAG="scale 8.0")
    world.add_pictures(p, 2)
    world.jobs[1].gallery_map.append(3)
    p.batch_size = 4
    p.batch_index = 3
    distributed.check_picture(p, ASKED)
    assert infotext(p, 3) == ""
    assert p.comments == {}


def test_what_cannot_be_read_is_said(caplog: pytest.LogCaptureFixture) -> None:
    world = World([PLAIN])
    world.jobs[1].worker.response["info"] = "no JSON"
    p = Request(world, ASAG="scale 8.0")
    world.jobs[1].gallery_map, p.batch_size, p.batch_index = [2], 3, 2
    distributed.check_picture(p, ASKED)
    said = "can't say whether the pictures of sd-webui-distributed's workers were guided as asked: JSONDecodeError"
    assert said in p.extra_generation_params["ASAG note"]
    processed = SimpleNamespace(comments="")
    distributed.check_rest(p, processed, ASKED)
    assert said in processed.comments
    assert "guided as asked" in caplog.text
