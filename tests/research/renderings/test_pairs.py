"""The blind judgement: which picture lies where, and how answers are counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from research.renderings import pairs


def test_the_key_says_on_which_side_asag_is(tmp_path, monkeypatch) -> None:
    """White is with ASAG, black without."""

    def sampled(pipeline, captions, names, settings, **arguments):
        return torch.full((len(names), 3, 64, 64), 1.0 if settings else -1.0)

    monkeypatch.setattr(pairs.shipped, "fast_pipeline", lambda folder: None)
    monkeypatch.setattr(pairs.shipped, "Captions", lambda folder: None)
    monkeypatch.setattr(pairs.shipped, "guided_sample", sampled)
    monkeypatch.setattr(pairs, "load_judge", lambda folder: None)
    monkeypatch.setattr(pairs, "asked_names", lambda judge, count, seed, left_out: (["red heart"] * count, []))
    pairs.make(tmp_path, tmp_path, 12, tmp_path / "out")
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["key.json", "pairs-1.png", "pairs-2.png"]
    key = pairs.json.loads((tmp_path / "out" / "key.json").read_text())
    assert set(key.values()) == {"A", "B"}
    sheet = np.asarray(Image.open(tmp_path / "out" / "pairs-1.png").convert("L"))
    side = 64 * 3
    for i in range(10):
        x, y = i % 2 * (2 * side + 24), i // 2 * (side + 16 + 8) + 16
        on_a = sheet[y + side // 2, x + side // 2]
        on_b = sheet[y + side // 2, x + side + 8 + side // 2]
        assert (on_a, on_b) == ((255, 0) if key[str(i + 1)] == "A" else (0, 255))


def test_most_of_the_judges_decide_and_even_pairs_count_for_nobody() -> None:
    key = {"1": "A", "2": "B", "3": "A", "4": "B"}
    first = {"1": "A", "2": "A", "3": "A", "4": "="}
    second = {"1": "A", "2": "A", "3": "B", "4": "="}
    third = {"1": "B", "2": "B", "3": "=", "4": "="}
    assert pairs.share(key, [first, second, third]) == {"pairs": 4, "won": 1, "lost": 1, "share": 0.5}


def test_the_page_says_what_the_judges_said() -> None:
    room = Path(pairs.__file__).parent
    said = json.loads((room / "results" / "judgement.json").read_text())
    found = pairs.share(said["asag_is"], said["answers"])
    even = found["pairs"] - found["won"] - found["lost"]
    won, lost = found["won"], found["lost"]
    words = f"ASAG came before CFG alone in {won:.0f} pairs and behind it in {lost:.0f}; {even:.0f} were even"
    page = (room / "README.md").read_text()
    assert words in page
    assert f"That is {found['share']:.0%}".replace("%", " %") in page
