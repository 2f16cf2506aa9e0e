"""A running WebUI over its HTTP API: the same seeds without ASAG, with a whole extra pass, and with prefix reuse."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from asag.lab.bench.measure import Meter, Variant, record, share

ADDRESS = "ASAG_WEBUI_URL"
REQUEST_SECONDS = 900
SETTINGS: dict[str, dict[str, Any]] = {
    "cfg": {"enabled": False},
    "full-pass": {"enabled": True, "scale": 1.5, "blocks": "mid", "reuse": False},
    "asag": {"enabled": True, "scale": 1.5, "blocks": "mid", "reuse": True},
}


# Quick or not: the side of a picture in pixels, and the sampling steps.
SIZES = {True: (256, 4), False: (512, 20)}


class HostError(RuntimeError):
    """There is no WebUI to measure, or it refused a request; the message says what is needed."""


def case_name(quick: bool) -> str:
    size, steps = SIZES[quick]
    return f"txt2img-{size}-{steps}-steps"


def measure(meter: Meter, quick: bool = False, only: str = "") -> Iterator[dict[str, Any]]:
    """A record per variant. Times are those of whole requests, decoding and all; the clock is the wall's.

    Raises:
        HostError: when no WebUI is named, it can't be reached, or it answers with an error.
    """
    url = os.environ.get(ADDRESS, "").rstrip("/")
    if not url:
        raise HostError(f"hosts: set {ADDRESS} to a running WebUI with its API on, such as http://127.0.0.1:7860")
    case = case_name(quick)
    if only not in case:
        return
    size, steps = SIZES[quick]
    payload = {"prompt": "a lighthouse in a storm", "width": size, "height": size, "steps": steps, "cfg_scale": 7}
    variants = {name: Variant(request(url, payload, settings)) for name, settings in SETTINGS.items()}
    times = Meter(meter.device, meter.pairs, meter.seconds).rounds(variants)
    for name in variants:
        found = record("hosts", case, name, times, base="cfg")
        if name == "asag":
            found["share_of_full_pass"] = share(times[name], times["full-pass"], times["cfg"])
        yield found


def request(url: str, payload: dict[str, Any], settings: dict[str, Any]) -> Callable[[], None]:
    """A call that generates one picture; the seeds of its calls are 1, 2, 3, ..."""
    seeds = count(1)
    script = {"alwayson_scripts": {"ASAG": {"args": [settings]}}}
    send = partial(post, f"{url}/sdapi/v1/txt2img")
    return lambda: send(payload | script | {"seed": next(seeds)})


def post(url: str, payload: dict[str, Any]) -> None:
    body = json.dumps(payload).encode()
    try:
        with urlopen(Request(url, body, {"Content-Type": "application/json"}), timeout=REQUEST_SECONDS) as reply:
            answer = json.load(reply)
    except HTTPError as error:
        raise HostError(f"hosts: {url} answers {error.code}: {error.read()[:500].decode(errors='replace')}") from error
    except (URLError, OSError, ValueError) as error:
        raise HostError(f"hosts: {url}: {error}") from error
    if not answer.get("images"):
        raise HostError(f"hosts: {url} answers without an image: {str(answer)[:500]}")
