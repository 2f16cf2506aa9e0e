"""The commands on the pages of protocols are ones that the parsers take."""

import re
import shlex
from pathlib import Path

import pytest

from asag.__main__ import COMMANDS as PRODUCT
from research.__main__ import COMMANDS as RESEARCH

ROOM = Path(__file__).parents[3] / "research" / "asag"
COMMANDS = {"asag": PRODUCT, "research": RESEARCH}


def commands(page):
    for block in re.findall(
        r"^```\n(.*?)^```", re.sub(r"(?ms)^```\w.*?^```", "", (ROOM / page).read_text()), re.DOTALL | re.M
    ):
        # A quoted value may go over several lines, as in a shell.
        for text in re.split(r"\n(?=python|npm|echo|pip)", block.replace("\\\n", " ")):
            if found := re.match(r"python -m (asag|research) (.+)", text, re.DOTALL):
                yield found[1], shlex.split(found[2])


@pytest.mark.parametrize(("page", "count"), [("protocol-30k.md", 7), ("protocol-cell.md", 2)])
def test_the_commands_of_a_protocol_are_read(page, count, monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda self: True)  # the folders that a page names are its reader's
    found = list(commands(page))
    assert len(found) == count
    for room, (command, *argv) in found:
        COMMANDS[room][command].read(argv)
