"""Load: mixed requests by four clients at once. None fails that shouldn't, no image changes, and nothing grows.

ASAG_LOAD=500 sends 500 requests; without it there are few. The test prints what the host held after each round, and how
long the requests took. It looks at no time itself.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from .payloads import asag, assert_same, control_unit, image_request, request
from .server import Answer, WebUI
from .test_hires import HIRES
from .test_image_to_image import inpainting, mask
from .test_interrupt import unquoted

REQUESTS = int(os.environ.get("ASAG_LOAD", "60"))
CLIENTS = 4
# The part by which a number may be above what it was early on.
GROWTH = 0.02
# So many that the command to interrupt comes in time.
STEPS = 20
SIZE = {"width": 64, "height": 64}
MASK = mask(slice(32, 96), slice(32, 96))
REFUSED = {"bad scale": "scale: 999; allowed: a number from 0 to 100", "bad block": "in.99"}


def small(**changes: Any) -> dict[str, Any]:
    return request(**{**SIZE, **changes})


def small_image(**changes: Any) -> dict[str, Any]:
    # The host keeps the encoded prompt for the next request of as many steps.
    return image_request(**{**SIZE, "steps": 3, **changes})


def guided(**settings: Any) -> dict[str, Any]:
    # The middle block has one token at this size.
    return asag(**{"blocks": "out.6-11", **settings})


def controlled(webui: WebUI) -> dict[str, Any]:
    """Requests with a canny unit, where the host has ControlNet and a model for it."""
    try:
        names = webui.get("/controlnet/model_list")["model_list"]
    except requests.HTTPError:
        return {}
    name = next((name for name in names if "15" in name and ("control" in name or "cn15" in name)), None)
    if name is None:
        return {}
    unit = control_unit("canny", name)
    return {
        "plain ControlNet": small(alwayson_scripts=unit),
        "guided ControlNet": small(alwayson_scripts={**unit, **guided()}),
    }


def requests_of_a_round(webui: WebUI) -> dict[str, dict[str, Any]]:
    return {
        "plain": small(),
        "plain again": small(),
        "plain batch": small(batch_size=2),
        "plain hires": small(**HIRES),
        "guided": small(alwayson_scripts=guided()),
        "guided by whole passes": small(alwayson_scripts=guided(method="pag", reuse=False)),
        "guided batch": small(alwayson_scripts=guided(unit="push", scale=0.5, contrast=0.5), batch_size=2),
        "guided hires": small(alwayson_scripts=guided(every=2), **HIRES),
        "guided with figures": small(alwayson_scripts=guided(figures=True)),
        **controlled(webui),
        "img2img": small_image(),
        "guided img2img": small_image(alwayson_scripts=guided()),
        "inpainting": inpainting(MASK, **SIZE, steps=3),
        "guided inpainting": inpainting(MASK, **SIZE, steps=3, alwayson_scripts=guided()),
        "bad scale": small(alwayson_scripts=asag(scale=999)),
        "bad block": small(alwayson_scripts=asag(blocks="in.99")),
        "interrupted": request(alwayson_scripts=asag(), steps=STEPS),
    }


def ask(webui: WebUI, name: str, payload: dict[str, Any]) -> Answer:
    if name == "interrupted":
        return interrupted(webui, payload)
    return webui.img2img(**payload) if "init_images" in payload else webui.txt2img(**payload)


def interrupted(webui: WebUI, payload: dict[str, Any]) -> Answer:
    """The answer to a request that was interrupted on its way. The host interrupts what runs: it has to be this."""
    task = f"asag-{random.getrandbits(64)}"
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(webui.txt2img, **payload, force_task_id=task)
        progress = {"id_task": task, "live_preview": False}
        while (webui.post("/internal/progress", progress).body["progress"] or 0) < 2 / STEPS:
            assert not answer.done(), answer.result().body
            time.sleep(0.05)
        assert webui.post("/sdapi/v1/interrupt").status == 200
        return answer.result()


def check(name: str, answer: Answer, first: Answer) -> None:
    """`first`: the answer to the same request when it was alone."""
    if name in REFUSED:
        assert answer.status == 422, (name, answer.body)
        assert REFUSED[name] in answer.body["detail"]
        return
    assert answer.status == 200, (name, answer.body)
    if name == "interrupted":
        assert "steps: the image was interrupted" in unquoted(answer)
    elif "img2img" not in name and "inpainting" not in name:
        # A1111 itself encodes an image with random numbers that depend on the request before.
        for image, expected in zip(answer.images, first.images, strict=True):
            assert_same(image, expected)


@pytest.fixture(scope="module")
def first_answers(webui: WebUI) -> dict[str, Answer]:
    """Before the guard looks at the modules: ControlNet leaves attributes there when it is first used."""
    return {name: ask(webui, name, payload) for name, payload in requests_of_a_round(webui).items()}


def told(before: dict[str, float], after: dict[str, float]) -> str:
    """What the host held after a round."""
    took = after["seconds"] - before["seconds"]
    held = f"{after['resident'] / 2**20:.1f} MiB, {after['tensors']} tensors, {after['objects']} objects"
    return f"{held}; {took:.1f} s of the processor"


def medians(seconds: list[dict[str, float]], part: int) -> str:
    """Of what the requests of a kind took in the first rounds and in the last."""
    lines = []
    for name in seconds[0]:
        early, late = (statistics.median(each[name] for each in some) for some in (seconds[:part], seconds[-part:]))
        lines.append(f"{name}: {early:.2f} s in the first {part} rounds, {late:.2f} s in the last")
    return "\n".join(lines)


@pytest.mark.timeout(60 * REQUESTS)
def test_load(webui: WebUI, first_answers: dict[str, Answer], capsys: pytest.CaptureFixture[str]) -> None:
    payloads = requests_of_a_round(webui)
    rounds = max(4, round(REQUESTS / len(payloads)))
    readings, seconds = [webui.get("/asag-probe/memory")], []
    with ThreadPoolExecutor(CLIENTS) as clients, capsys.disabled():
        for number in range(1, rounds + 1):
            names = random.Random(number).sample(list(payloads), len(payloads))
            answers = dict(zip(names, clients.map(lambda name: ask(webui, name, payloads[name]), names), strict=True))
            for name, answer in answers.items():
                check(name, answer, first_answers[name])
            seconds.append({name: answers[name].seconds for name in payloads})
            readings.append(webui.get("/asag-probe/memory"))
            print(f"\nround {number} of {rounds}, {len(names)} requests: {told(*readings[-2:])}", end="", flush=True)
        part = rounds // 4
        print(f"\n{medians(seconds, part)}")
    # The first part warms up.
    for what in ("resident", "tensors", "objects"):
        early = statistics.median(each[what] for each in readings[part + 1 : 2 * part + 1])
        late = statistics.median(each[what] for each in readings[-part:])
        assert late <= early * (1 + GROWTH), what
