"""Pictures that sd-webui-distributed had other machines make, its workers: was each guided as asked?

Source: scripts/distributed.py and scripts/spartan/world.py of stable-diffusion-webui-distributed 2.3.0. It sends each
worker a request with the arguments of those scripts that it believes the worker to have. Its `postprocess_batch_list`
adds the workers' pictures after those of the last batch, and says in the `gallery_map` of each job how many. The host
writes this machine's parameters into the files of all of them. Its `postprocess` then takes the infotexts of the result
from the workers' answers. In its thin-client mode no picture is made here, and `postprocess` alone is called.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from asag.hosts import notes
from asag.settings import AsagSettings
from asag.webui import api, infotext

TITLE = "Distribute"
# As the host's own (modules/infotext_utils.py: re_param_code).
PARAMETER = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """A picture in a worker's answer, by its place there."""

    worker: Any
    place: int

    @property
    def infotext(self) -> str:
        """Empty for what an extension there added without one."""
        infotexts = json.loads(self.worker.response["info"])["infotexts"]
        return infotexts[self.place] if self.place < len(infotexts) else ""

    def add_note(self, message: str) -> None:
        """Add a note to the infotext in the answer, where the extension takes it from."""
        answer = json.loads(self.worker.response["info"])
        answer["infotexts"][self.place] += f", {notes.KEY}: {json.dumps(message, ensure_ascii=False)}"
        self.worker.response["info"] = json.dumps(answer)


def check_picture(p: Any, args: Sequence[Any]) -> None:
    """Before the host writes the infotext of the picture `p.batch_index`: if a worker made it, have the infotext say
    what that worker did, and note what wasn't done as asked. `args`: the script's arguments."""
    try:
        asked = api.read_args(args)
        if not asked.active:
            return
        jobs = _jobs(p)
        pictures = _pictures(jobs)
        number = p.batch_index - (p.batch_size - len(pictures))
        if 0 <= number < len(pictures):
            _say_what_was_done(p, pictures[number])
            _note(p, [pictures[number]], asked)
        for message in _missing(jobs):
            notes.note(p, message)
    except Exception as error:
        notes.note(p, _unknown(error))


def check_rest(p: Any, processed: Any, args: Sequence[Any]) -> None:
    """The same for the pictures of a result that the host wrote no infotext for."""
    try:
        asked = api.read_args(args)
        if not asked.active:
            return
        said = _note(p, _pictures(_jobs(p)), asked)
    except Exception as error:
        said = [_unknown(error)]
    # The host has joined the comments already.
    processed.comments += "".join(f"{message}\n" for message in dict.fromkeys(said))


def _jobs(p: Any) -> list[Any]:
    """The extension's jobs for `p`, this machine's among them."""
    scripts = p.scripts.alwayson_scripts if p.scripts else []
    world = next((getattr(script, "world", None) for script in scripts if script.title() == TITLE), None)
    if world is None or world.p is not p:
        return []  # the extension is off, and its jobs are those of an earlier request
    jobs: list[Any] = world.jobs
    return jobs


def _pictures(jobs: Sequence[Any]) -> list[Picture]:
    """Those that workers made, in the order in which they were added."""
    return [Picture(job.worker, place) for job in jobs if _answered(job) for place in range(len(job.gallery_map))]


def _missing(jobs: Sequence[Any]) -> list[str]:
    """What to say of workers that failed, as they do where ASAG there refuses the request."""
    failed = [job.worker.label for job in jobs if job.thread and not job.thread.is_alive() and not _answered(job)]
    return [f"The worker {label} sent no pictures; the log of this WebUI says why" for label in failed]


def _answered(job: Any) -> bool:
    return isinstance(job.worker.response, dict)


def _say_what_was_done(p: Any, picture: Picture) -> None:
    """The value for the settings in the infotext of a picture: the worker's, in place of this machine's."""
    done, here = _parameters(picture.infotext).get(infotext.KEY), p.extra_generation_params.get(infotext.KEY)
    if done != here:
        # The host takes a list to hold a value for each picture of the batch; None is left out.
        each = here if isinstance(here, list) else [here] * p.batch_size
        each[p.batch_index] = done
        p.extra_generation_params[infotext.KEY] = each


def _note(p: Any, pictures: Sequence[Picture], asked: AsagSettings) -> list[str]:
    """Note on `p` what is to be said of the pictures, and return it."""
    said = []
    for picture in pictures:
        message = _message(p, picture, asked)
        if message:
            notes.note(p, message)
            said.append(message)
    return said


def _message(p: Any, picture: Picture, asked: AsagSettings) -> str:
    """What the user is to know of a picture and hasn't been told; nothing when it was guided as asked."""
    if not picture.infotext:
        return ""
    label, found = picture.worker.label, _parameters(picture.infotext)
    done, noted = found.get(infotext.KEY), found.get(notes.KEY, "")
    if done is None and not noted:
        message = (
            f"ASAG didn't guide what the worker {label} made: install ASAG there, and restart this WebUI, since "
            "sd-webui-distributed asks for a worker's extensions only at the start"
        )
    elif done not in (None, infotext.write(asked)):
        message = f"ASAG guided what the worker {label} made with other settings than asked for: {done}"
    else:
        return "" if noted in p.extra_generation_params.get(notes.KEY, "") else f"Worker {label}: {noted}"
    if noted == message:
        return ""
    picture.add_note(message)
    return message


def _parameters(text: str) -> dict[str, str]:
    """The parameters in the last line of an infotext, by name."""
    return {name: _unquoted(value) for name, value in PARAMETER.findall(text.rpartition("\n")[2])}


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value)) if value.startswith('"') else value
    except ValueError:
        return value


def _unknown(error: Exception) -> str:
    message = "ASAG can't say whether the pictures of sd-webui-distributed's workers were guided as asked"
    logger.exception(message)
    return f"{message}: {type(error).__name__}: {error}"
