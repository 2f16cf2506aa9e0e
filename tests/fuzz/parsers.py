"""What reads text and bytes from outside, as functions of bytes: for atheris (run.py) and the inputs that it kept."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from asag.blocks import BlocksError, parse_blocks, select_heads
from asag.hosts.checkpoints import Unreadable, contents
from asag.models.ldm_unet import LdmUnet
from asag.noise import read_noise
from asag.preset_file import PresetError
from asag.presets import Presets, read_shared
from asag.settings import AsagSettings, SettingsError
from asag.webui import api, block_map, earlier_labels, infotext
from tests.test_blocks import MID, SDXL

# A line of JSON for each input; a character is a byte.
CORPUS = Path(__file__).parent / "corpus.jsonl"
FOLDER = Path(tempfile.mkdtemp())


def text_of(data: bytes) -> str:
    """Bytes that are no UTF-8 become halves of surrogate pairs, as JSON may hold them."""
    return data.decode("utf-8", "surrogateescape")


def blocks(data: bytes) -> None:
    found = parse_blocks(text_of(data))
    assert parse_blocks(str(found)) == found
    select_heads(found, SDXL, MID)


def toggled(data: bytes) -> None:
    text, _, toggle = text_of(data).partition("|")
    found = block_map.inventory(LdmUnet(), SDXL, text, toggle, dict.fromkeys(SDXL, 8))
    json.dumps({**found, "text": ""}, ensure_ascii=False).encode("utf-8")


def moment(data: bytes) -> None:
    kept = read_noise(text_of(data))
    assert kept is None or read_noise(kept) == kept


def pasted(data: bytes) -> None:
    settings = infotext.read({infotext.KEY: text_of(data)})
    assert not settings.enabled or infotext.read({infotext.KEY: infotext.write(settings)}) == settings


def shared(data: bytes) -> None:
    read_shared(text_of(data))


def payload(data: bytes) -> None:
    try:
        given = json.loads(data)
    except (ValueError, RecursionError):
        return
    settings = api.read_args(given if isinstance(given, list) else [given])
    assert AsagSettings.from_mapping(settings.__dict__) == settings


def presets(data: bytes) -> None:
    path = FOLDER / "presets.json"
    path.write_bytes(data)
    kept = Presets(path)
    kept.names()
    kept.notice.encode("utf-8")
    earlier_labels.start_values(path, is_img2img=False)
    kept.save("mine", AsagSettings())
    for each in FOLDER.glob("presets.json*"):
        each.unlink()


def header(data: bytes) -> None:
    path = FOLDER / "a.safetensors"
    path.write_bytes(len(data).to_bytes(8, "little") + data)
    contents(path)


PARSERS: list[Callable[[bytes], None]] = [blocks, toggled, moment, pasted, shared, payload, presets, header]
DOCUMENTED = (BlocksError, SettingsError, PresetError, Unreadable)


def one_input(data: bytes) -> None:
    """The first byte chooses the parser. What it raises may be what it documents, and nothing else."""
    if data:
        try:
            PARSERS[data[0] % len(PARSERS)](data[1:])
        except DOCUMENTED as error:
            str(error).encode("utf-8")


def corpus() -> list[bytes]:
    return [json.loads(line).encode("latin-1") for line in CORPUS.read_text(encoding="utf-8").splitlines()]
