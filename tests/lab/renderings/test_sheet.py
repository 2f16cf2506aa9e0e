"""Contact sheets, and what they are asked for."""

from itertools import pairwise

import numpy as np
import torch
from PIL import Image

from asag.lab.renderings.sheet import CAPTIONS, contact_sheet


def test_a_sheet_holds_every_picture_over_its_caption(tmp_path):
    path = tmp_path / "x" / "sheet.png"
    contact_sheet(
        torch.ones(3, 3, 64, 64) * torch.tensor([-1.0, 0.0, 1.0])[:, None, None, None], ["a"] * 3, path, columns=2
    )
    sheet = Image.open(path)
    assert sheet.size == (2 * 132, 2 * 156)
    values = [sheet.getpixel(place)[0] for place in ((66, 66), (198, 66), (66, 222))]
    assert values == [0, 128, 255]


def test_wrong_pictures_have_a_red_caption_and_long_ones_two_lines(tmp_path):
    contact_sheet(torch.ones(2, 3, 64, 64), ["woman’s hat and more words"] * 2, tmp_path / "sheet.png", [True, False])
    strip = Image.open(tmp_path / "sheet.png").crop((0, 130, 264, 156))
    wrong, right = (np.asarray(strip.crop((x, 0, x + 132, 26))).reshape(-1, 3).astype(int) for x in (0, 132))
    # Letters have soft edges.
    assert (wrong[:, 0] - wrong[:, 1]).max() > 200
    assert np.array_equal(right[:, 0], right[:, 1])
    assert right.min() < 50


def test_the_fixed_captions_are_different_and_fill_whole_rows():
    assert len(CAPTIONS) == 32
    assert all(a < b for a, b in pairwise(sorted(CAPTIONS)))
